"""What ``dev.py`` runs: a module for each kind of work, over one virtual environment."""
