"""Messages between two processes: counted and acknowledged, large values in streams, under credit.

``link`` is what a channel stands on; ``port`` its socket, ``inbox`` and ``outbox`` what comes and
what it sends by itself, ``peer`` what it knows of the other side. ``streams`` and its two halves
are a machine without a socket.
"""
