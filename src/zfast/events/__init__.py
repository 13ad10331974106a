"""States of runs on the wire the moment they change. This room knows no Prefect.

::

    reactions             wait for a state, run something when it comes
    tally                 runs by state, throughput, latencies: for views of the whole
    relay                 one endpoint for many publishers
    subscription          events of all publishers, sync and async
    publisher             events out of this process
    feed  filters         one source's sockets; which events are wanted
    follower  desk        a subscriber's and a publisher's side of joining and catching up
    arrivals              publishers of this user on this host find subscribers, and they them
    memory                what a publisher remembers
    sockets               how the events' sockets are opened; the seam for security
    messages  frames      what is on the wire
    event  topics  runtime_folder
"""
