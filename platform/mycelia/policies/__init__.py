"""Policies: what is decided about calls (when to try again, when to stop), as records and pure functions over them."""
