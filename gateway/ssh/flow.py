"""How much may be on its way: windows (RFC 4254 §5.2) that follow the path's measured capacity.

THEORY OF OPERATION

A path carries ``rate * rtt`` bytes at once, its bandwidth-delay product. A window below that wastes
the path; what lies above it stands in a queue before everybody else's bytes. So both are measured
while data flows, and the bytes allowed on their way follow. Nothing here reads a clock or does I/O.

*Probes.* `PathMeter` asks for a probe (ping@openssh.com, or a global request) while data flows. Its
answer comes behind the data queued in either direction, so the time until then is the loaded rtt.
An answer to a probe that was sent after the last round's end ends a *round*. A round gives for each
direction a delivery rate; the largest of the last RATE_ROUNDS counts. A round in which less than
half of the target was delivered was limited by the application and can only raise the rate.

*Target.* ``rate * (GAIN * min_rtt + SLACK_S + JITTER_GAIN * jitter)``. While the window is what
limits, the rate is window / rtt and the target grows with every round: no slow start is needed.
Once the line limits, the rate stays, the rtt grows, and the target holds: the queue is about one
bandwidth-delay product. An rtt without a queue asks for GROWTH_GAIN instead: what is granted now
arrives one round later and is measured in the next, so a gain of 2 would double in two rounds.
Jitter, changes of the rtt that the next round undoes, counts as path and not as queue: otherwise
the target would shrink where the rtt varies (wifi), the rate with it, and so on down to the floor.
A ramp is a queue and no jitter, or queues would raise the target. While both directions are loaded,
each one's credit waits in the other's queue and whichever has the smaller window would stay so;
then the highest rate since the last drain but one counts, and the gains take turns.

*Draining* (BBR's PROBE_RTT). Our own queue must not become the new minimum, nor may an old minimum
stay when the route got longer. So the minimum never expires by itself: when it was not seen for
MIN_RTT_AGE_S, or the rate has FALLEN without it being seen, the target is cut to what the line
carries in SLACK_S, until it is seen or DRAIN_ROUNDS have passed; then the smallest rtt of these
rounds is the minimum. What is within SLACK_S of the minimum is the minimum seen: differences so
small need no other target.

*Sending* towards a peer whose windows are constant: bytes sent minus bytes known to be delivered,
the offset of the last answered probe, stay below ``target_out``. One probe per round would know
that a round too late; so a sender stops and asks for a probe at every quarter of the target.
``send_until`` is the offset where it stops next, for either reason.

A peer that does not answer for ANSWER_DEADLINE_S is not measured: DEFAULT_WINDOW for each channel
in, no limit out, until it answers. Nor is one with which keys are exchanged OFTEN; else an
exchange only makes an answer worthless.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import Final, NamedTuple

KIB: Final = 1024
# ---- windows, in bytes ---------------------------------------------------------------------------
MINIMUM_TARGET: Final = 64 * KIB  # of a link: two of them, one arrives, one is on its way
INITIAL_WINDOW: Final = 256 * KIB  # while nothing is known: 0.1 s of queue at 20 Mbit/s
INITIAL_LIMIT: Final = 512 * KIB  # … of what we send, which can be taken back
MAXIMUM_WINDOW: Final = 64 * 1024 * KIB  # 320 MB/s at 100 ms
DRAINED_WINDOW: Final = 2 * KIB  # of a channel while the queue drains
UNLIMITED: Final = 1 << 62
# ---- probes --------------------------------------------------------------------------------------
PROBE_INTERVAL_S: Final = 0.010  # a round's least length: below, rates are scheduling noise
PROBE_BYTES: Final = 16 * KIB  # less than this since the last probe is no load …
IDLE_S: Final = 1.0  # … but after this time without a probe any byte asks for one
ANSWER_DEADLINE_S: Final = 10.0
# With RekeyLimit at a few packets keys are exchanged most of the time.
OFTEN: Final = 5  # exchanges …
OFTEN_S: Final = 2.0  # … in this time, and nothing is measured …
CALM_S: Final = 10.0  # … until so long after the last
MAXIMUM_PROBES: Final = 8  # on their way at once: two targets' worth
SEND_STEPS: Final = 4  # probes for one target's worth of sent bytes
# ---- the target ----------------------------------------------------------------------------------
GAIN: Final = 2.0  # BBR's cwnd_gain
GROWTH_GAIN: Final = 4.0  # 2 for each of the two rounds until growth is seen
TURN_GAINS: Final = (2.4, 2.8)  # both directions loaded; by simulation, for an rtt of 3.5 * min_rtt
TURN_ROUNDS: Final = 8  # a power of two; shorter than RATE_ROUNDS, so that the rate outlasts it
LOADED_ROUNDS: Final = 8  # a direction counts as loaded for so long after it was
SLACK_S: Final = 0.0075  # a queue nobody feels; a scheduler's 5 ms of noise and half of it
JITTER_GAIN: Final = 4.0  # as RTTVAR's in RFC 6298
JITTER_WEIGHT: Final = 1 / 16  # RFC 3550 §6.4.1; with the gain 1/4, so no feedback through the rtt
OUTLIER: Final = 4.0  # times the jitter and the slack: no single round counts for more
QUEUE_FRACTION: Final = 1.25  # an rtt above this * min_rtt + SLACK_S means a queue
RATE_ROUNDS: Final = 10  # as BBR
FALLEN: Final = 0.75  # of the highest rate since the last drain: the path has changed …
FALLEN_ROUNDS: Final = 3  # … if for so long
MIN_RTT_AGE_S: Final = 10.0  # as BBR
DRAIN_ROUNDS: Final = 3  # one empties the queue, one sees it empty, one to spare
DRAIN_GAP_S: Final = 2.0  # between two drains: at 100 ms they cost 10 % at most


class Probe(NamedTuple):
    """What was known when a probe was sent."""

    sent_s: float
    bytes_in: int
    bytes_out: int


class _Rate:
    """The delivery rate of one direction in bytes/s, and the target in bytes that follows."""

    __slots__ = ("_old_peak", "_peak", "_rates", "loaded_rounds", "target")

    def __init__(self, target: int) -> None:
        self._rates: deque[float] = deque(maxlen=RATE_ROUNDS)
        self._peak = 0.0
        self._old_peak = 0.0
        self.loaded_rounds = 0  # in which the target counts as used
        self.target = target

    @property
    def rate(self) -> float:
        return max(self._rates, default=0.0)

    @property
    def has_fallen(self) -> bool:
        return max(self._newest(), default=0.0) < FALLEN * self._peak

    def _newest(self) -> list[float]:
        return list(self._rates)[-FALLEN_ROUNDS:]

    def sample(self, delivered: int, interval_s: float, *, is_drained: bool) -> None:
        """Count a round, unless something other than the target limited it."""
        rate = delivered / interval_s
        is_full = not is_drained and 2 * delivered >= self.target
        self.loaded_rounds = LOADED_ROUNDS if is_full else max(self.loaded_rounds - 1, 0)
        if rate > self.rate or is_full:
            self._rates.append(rate)
            self._peak = max(self._peak, self.rate)

    def forget_peak(self) -> None:
        if self.has_fallen:
            self._rates = deque(self._newest(), maxlen=RATE_ROUNDS)
        self._old_peak, self._peak = self._peak, self.rate

    def aim(self, interval_s: float, floor: int, *, is_both: bool) -> None:
        """Set the target to what the path carries in this time."""
        if self._rates:
            rate = max(self._peak, self._old_peak) if is_both else self.rate
            self.target = int(min(max(rate * interval_s, floor), MAXIMUM_WINDOW))


class PathMeter:
    """What one link's path carries. All offsets are totals of channel data bytes of the link.

    ``target_in`` and ``target_out`` are bytes that may be on their way. A sender stops at the
    offset ``send_until``, and no packet carries more than ``send_step`` bytes.
    """

    def __init__(self) -> None:
        self.target_in = INITIAL_WINDOW
        self.target_out = INITIAL_LIMIT
        self.send_until = UNLIMITED
        self.send_step = UNLIMITED
        self.min_rtt_s = inf
        self.rtt_s = inf  # the last sample
        self.jitter_s = 0.0
        self._round_rtt_s = inf  # at the end of the last round
        self._change_s = 0.0  # … minus that of the round before
        self.is_lost = False  # nothing can be measured: no answers, or keys exchanged all the time
        self._disturbed_s = -inf  # when keys were exchanged last
        self._exchanges: deque[float] = deque(maxlen=OFTEN)
        self._unmeasured_until_s = -inf
        self.is_draining = False
        self._is_refilling = False  # this round began while draining
        self._in = _Rate(INITIAL_WINDOW)
        self._out = _Rate(INITIAL_LIMIT)
        self._probes: deque[Probe] = deque()
        self._newest = Probe(-inf, 0, 0)
        self._delivered_out = 0  # known to be
        self._is_answered = False  # the peer has answered
        self._round = Probe(-inf, 0, 0)  # its end, and what had been delivered by then
        self._round_sent_s = -inf  # when the probe that ended it had been sent
        self._rounds = 0
        self._seen_s = -inf  # when the minimum was last seen
        self._drained_s = -inf
        self._drain_rounds_left = 0
        self._drain_rtt_s = inf

    @property
    def rate_in(self) -> float:
        """What the path was measured to deliver to us, in bytes/s."""
        return self._in.rate

    # -- probes ------------------------------------------------------------------------------------

    def probe_due(
        self, now_s: float, bytes_in: int, bytes_out: int, *, is_opening: bool = False
    ) -> bool:
        """Whether to send a probe now. Ask after every batch, and where ``send_until`` is met.

        ``is_opening``: no data flows yet, but soon will.
        """
        newest = self._newest
        if bytes_out - newest.bytes_out >= self.send_step and len(self._probes) < MAXIMUM_PROBES:
            return True
        if self._probes:
            return False
        flowed = bytes_in - newest.bytes_in + bytes_out - newest.bytes_out
        age_s = now_s - newest.sent_s
        return (flowed >= PROBE_BYTES and age_s >= PROBE_INTERVAL_S) or (
            (flowed > 0 or is_opening) and age_s >= IDLE_S
        )

    def probe_sent(self, now_s: float, bytes_in: int, bytes_out: int) -> None:
        """Note that a probe went out behind ``bytes_out`` bytes of data."""
        self._newest = Probe(now_s, bytes_in, bytes_out)
        self._probes.append(self._newest)
        self._limit()

    def probe_answered(self, now_s: float, bytes_in: int) -> bool:
        """Note the answer to the oldest probe; say whether a round ended and targets may differ."""
        if not self._probes:
            return False  # nobody asked
        probe = self._probes.popleft()
        self._delivered_out = probe.bytes_out
        self._is_answered = True
        if probe.sent_s <= self._disturbed_s:
            return self._ignore(now_s, probe, bytes_in)
        self._see_rtt(now_s - probe.sent_s, now_s)
        is_end = (
            probe.sent_s >= self._round.sent_s and now_s - self._round.sent_s >= PROBE_INTERVAL_S
        )
        if is_end:
            self.is_lost = now_s < self._unmeasured_until_s
            self._end_round(now_s, probe, bytes_in)
        self._limit()
        return is_end

    def disturbed(self, now_s: float) -> None:
        """Note a key exchange: no data flowed, and answers to earlier probes tell nothing."""
        self._disturbed_s = now_s
        self._exchanges.append(now_s)
        if len(self._exchanges) == OFTEN and now_s - self._exchanges[0] < OFTEN_S:
            self._unmeasured_until_s = now_s + CALM_S
            self.is_lost = True
            self.is_draining = False
            self._limit()

    def _ignore(self, now_s: float, probe: Probe, bytes_in: int) -> bool:
        """Begin a new round after an answer that was delayed."""
        self._round, self._round_sent_s = Probe(now_s, bytes_in, probe.bytes_out), probe.sent_s
        self._limit()
        return self.is_lost

    def tick(self, now_s: float) -> bool:
        """Look for a missing answer, about every second; say whether shares are to be set now."""
        if self._probes and now_s - self._probes[0].sent_s > ANSWER_DEADLINE_S:
            self.is_lost = True
            self.is_draining = False
            self._limit()
        return self.is_lost

    def _see_rtt(self, rtt_s: float, now_s: float) -> None:
        self.rtt_s = rtt_s
        self._drain_rtt_s = min(self._drain_rtt_s, rtt_s)
        self.min_rtt_s = min(self.min_rtt_s, rtt_s)
        if rtt_s <= self.min_rtt_s + SLACK_S:
            self._seen_s = now_s
            if self.is_draining:
                self._end_drain(now_s)

    # -- rounds ------------------------------------------------------------------------------------

    def _end_round(self, now_s: float, probe: Probe, bytes_in: int) -> None:
        start, sent_s = self._round, self._round_sent_s
        self._round, self._round_sent_s = Probe(now_s, bytes_in, probe.bytes_out), probe.sent_s
        self._is_refilling = probe.sent_s <= self._drained_s
        is_drained = self.is_draining or self._is_refilling
        self._see_jitter()
        if probe.sent_s - start.sent_s > PROBE_INTERVAL_S:  # nothing flowed for a while
            delivered_in, interval_in_s = bytes_in - probe.bytes_in, now_s - probe.sent_s
            delivered_out, interval_out_s = 0, 1.0
        else:
            delivered_in, interval_in_s = bytes_in - start.bytes_in, now_s - start.sent_s
            delivered_out = probe.bytes_out - start.bytes_out
            interval_out_s = max(interval_in_s, probe.sent_s - sent_s)
        interval_in_s = max(interval_in_s, PROBE_INTERVAL_S)
        self._in.sample(delivered_in, interval_in_s, is_drained=is_drained)
        self._out.sample(delivered_out, interval_out_s, is_drained=is_drained)
        self._drain(now_s)
        self._aim()

    def _see_jitter(self) -> None:
        """A change of the rtt that the next round undoes is jitter; a ramp is a queue."""
        change_s = 0.0
        is_ours = self.is_draining or self._is_refilling or self._is_both
        if self._round_rtt_s < inf and not is_ours:
            change_s = self.rtt_s - self._round_rtt_s
        is_undone = change_s * self._change_s < 0
        undone_s = min(abs(change_s), abs(self._change_s)) - SLACK_S if is_undone else 0.0
        undone_s = min(undone_s, OUTLIER * (self.jitter_s + SLACK_S))
        self.jitter_s += (max(undone_s, 0.0) - self.jitter_s) * JITTER_WEIGHT
        self._change_s, self._round_rtt_s = change_s, self.rtt_s

    def _drain(self, now_s: float) -> None:
        """Begin or end to look for the minimum rtt."""
        if self.is_draining:
            self._drain_rounds_left -= 1
            if self._drain_rounds_left <= 0:
                self.min_rtt_s = self._drain_rtt_s
                self._end_drain(now_s)
            return
        unseen_s = now_s - self._seen_s
        has_fallen = self._in.has_fallen or self._out.has_fallen
        is_suspect = has_fallen and not self._is_both and unseen_s > 2 * self.rtt_s
        if (unseen_s > MIN_RTT_AGE_S or is_suspect) and now_s - self._drained_s > DRAIN_GAP_S:
            self.is_draining = True
            self._drain_rounds_left = DRAIN_ROUNDS
            self._drain_rtt_s = inf

    def _end_drain(self, now_s: float) -> None:
        self.is_draining = False
        self._seen_s = self._drained_s = now_s
        self._in.forget_peak()
        self._out.forget_peak()

    def _aim(self) -> None:
        gains, spare_s, floor = (GAIN, GAIN), SLACK_S + JITTER_GAIN * self.jitter_s, MINIMUM_TARGET
        self._rounds += 1
        if self.is_draining:
            gains, spare_s, floor = (0.0, 0.0), SLACK_S, DRAINED_WINDOW
        elif not self._is_refilling and self.rtt_s < QUEUE_FRACTION * self.min_rtt_s + SLACK_S:
            gains = GROWTH_GAIN, GROWTH_GAIN
        elif self._is_both:
            low, high = TURN_GAINS
            gains = (low, high) if self._rounds & TURN_ROUNDS else (high, low)
        for rate, gain in zip((self._in, self._out), gains, strict=True):
            rate.aim(gain * self.min_rtt_s + spare_s, floor, is_both=self._is_both)

    @property
    def _is_both(self) -> bool:
        return self._in.loaded_rounds > 0 and self._out.loaded_rounds > 0

    def _limit(self) -> None:
        """Say where the sender stops next: at its target, or to send a probe."""
        self.target_in, self.target_out = self._in.target, self._out.target
        if self.is_lost or not self._is_answered:
            self.send_until = self.send_step = UNLIMITED
            return
        self.send_step = max(self.target_out // SEND_STEPS, DRAINED_WINDOW)
        self.send_until = self._delivered_out + self.target_out
        if len(self._probes) < MAXIMUM_PROBES:
            self.send_until = min(self.send_until, self._newest.bytes_out + self.send_step)
