"""Warm worker processes: a hub in the driver, workers on its ipc endpoint. Knows no Prefect."""
