"""What is measured: each module is run as a process of its own, commanded over its stdin."""
