"""Methods that hold the base optimizer, or are one themselves.

No element of a chain in front of the base optimizer can follow their rules.
"""
