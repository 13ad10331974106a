"""What ``zfast bench`` measures on a user's machine: its limits, and the core rows.

``limits`` is what the machine can do; ``rows`` what zfast and what it is compared with do, measured
in turns by ``measure``; ``statistics`` says what may be concluded; ``page`` draws it.
"""
