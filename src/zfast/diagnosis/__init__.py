"""What is wrong on this machine, what is slow, and what to do about it: ``zfast doctor``.

::

    examination               every check, in order
    versions  libraries       what is installed, and whether it can do what is needed
    keys  tokens  clock       what identities rest on
    listening  stranger       open ports of zfast's processes, as somebody without a key sees them
    shared_memory  memory     how fast data can go between processes here, and how much
    finding                   what a check says
"""
