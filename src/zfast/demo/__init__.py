"""The demonstration behind ``zfast demo``: one flow on three task runners, measured."""
