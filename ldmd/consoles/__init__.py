"""The console service: people type on a domain's console and see what it prints, here or where the domain has moved.

What a domain prints lies in a file (``driver.DomainProcess.console_path``), and a session reads that file at its user's
pace: the file is the buffer, so a user who does not read costs next to nothing and holds nobody up. What is typed waits
in a bounded buffer (``keyboard.py``) until the domain has taken it.

    verb.py       the control socket's ``console``: one user's session, from host to host
    local.py      a console of a domain of this host, shown to a viewer
    keeper.py     the same for a peer's user, on a link
    relay.py      a console that a peer keeps, shown to a user here
    desk.py       who types: one user a console
"""
