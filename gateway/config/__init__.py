"""What the user wrote: ssh_config(5) and the addresses of the command line, as typed frozen values.

`ssh_config` answers "what applies to this host", `keywords` "what do we do with this keyword",
`addresses` "what does this name or -D argument mean". The rest serves `ssh_config`: `lines` is
the syntax of a line, `sources` the files with Host, Match and Include, `values` the meaning of a
value. Every complaint is a `ConfigError` that names file, line and keyword, and says what to write.
"""
