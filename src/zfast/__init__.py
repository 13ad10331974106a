"""The fast path for data in Prefect flows."""
