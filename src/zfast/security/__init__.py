"""Who may speak to a socket, and what each may do.

A socket that other hosts can reach is guarded: CURVE proves each peer's key, a table in memory says
who holds the key, a policy what that one may do. Everything here fails closed.

::

    server_security  client_security   what a socket owner uses
    door  listeners                    one guarded socket, and what it listens with
    doorkeeper                         who gets in there, who is connected, who has to leave
    gate                               the process's ZAP handler, which asks the doorkeepers
    zap  connections                   the handler's messages; who is connected, and the cut
    reload  file_signatures            files that changed take effect without a restart
    access                             one environment's table of identities
    tokens  issuer                     bearer tokens, the keys that brought them, their issuers
    token_courier  token_messages      a client's side of that, and what the two say
    policy  roles                      rules, roles, verbs
    sources  settings  key_folder      where keys come from
    curve_keys  private_files          a key, and the files that hold one
    routing_ids  same_user  limits  heap  audit
"""
