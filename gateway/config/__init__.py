"""What the user wrote: ssh_config(5) and the addresses of the command line, as typed frozen values.

`ssh_config` answers "what applies to this host", `keywords` "what do we do with this keyword",
`fields` "of what type is it and how does -G spell it", `addresses` "what does this name or -D
argument mean". Serving them: `lines` (the syntax of a line), `sources` (the files with Host and
Include), `match`, `canonical`, `tokens`, `values`, `offers` (what may be chosen), `dump` (-G) and
`interfaces`. `trust` reads known_hosts, `identities` keys and the agent, `questions` asks. Every
complaint is a `ConfigError` that names file, line and keyword, and says what to write.
"""
