"""Evidence: what the jump box saw and decided, in a log that shows when somebody changed it.

**What is written.** One JSON object per line (`records`): ASCII only, no control character inside,
no secret, every text from a peer cut to a stated length. Each line has a schema version ``v``, a
sequence number ``seq``, the wall time in UTC (RFC 3339, microseconds), the monotonic time, and
``prev``: the SHA-256 of the exact bytes of the line before. A connection is recorded as
``conn.open`` once its login is accepted; who never comes that far (scanners) is counted in
``noise``, one line per minute, source prefix and reason, and each attempt is an ``auth``. Refused
logins and refused opens that repeat are counted as well (``log.repeated``), so that nobody fills
the disk for us. Of each channel that a user asks for there is one ``channel.open`` with its
``channel.close``, or one ``channel.fail``, or one ``policy.decision`` that refuses.

**What the chain proves** (`chain`). Whoever holds the initial key finds the first line that was
edited, removed, repeated, moved, inserted or cut, also when all later hashes were computed again:
at intervals a ``log.checkpoint`` line carries an HMAC under a key that the writer then moves on by
a one-way function. Who takes the machine finds only the newest key, and cannot rewrite what was
sealed before. `chain` says precisely what is not proved; the short form: what came after the last
checkpoint (`writer.AuditOptions`: at most 1 000 records or 60 s, nothing after a clean stop).

**The keys.** ``audit.key`` holds the current key and moves on with every checkpoint.
``audit.initial`` holds the first one, which verifies everything: take it off the machine with
``gateway audit key FOLDER > FILE``, which prints and removes it. While it stays, whoever may read
the folder can rewrite the log. Neither file belongs into a backup of the machine.

**What may be lost** (`writer`). A record is in the kernel 0.1 s after `AuditLog.write` and on the
disk 1 s after that; kill -9 loses the first, a power cut both, plus what one write or sync takes.
A log that cannot be written never blocks the server: the buffer is bounded, strangers may fill
only a part of it, what found no room is counted and the count is written later, and
`AuditLog.accepts_new` is false until everything is written again: no new logins, no new channels.

**Files** (`store`). A folder of mode 0700 with ``audit-000001.jsonl``, …, mode 0600, each beginning
with a ``log.file`` line that continues the chain. One server per folder (flock). A start continues
where the last one ended; an incomplete last line is kept in a file beside it and reported, and so
is a run that did not end by itself. With ``audit_keep_days`` files go when what is in them is that
old; the log says so before, under its seal, and `chain` says what that proves.
"""
