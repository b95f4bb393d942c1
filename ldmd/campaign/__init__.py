"""The campaign: a migration is begun again and again, each time something goes wrong at another point of it, and after each
the promise is checked on the machine itself. ``ldm-faults campaign`` is its command; docs/faults.md says how to read it.
"""
