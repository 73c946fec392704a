"""Every key in Redis and what it holds. The scripts in lua/ use the same names.

All begin with the prefix of the settings (`tango:`). Times are milliseconds by the server's clock.

| key                 | kind   | holds                                                                    |
|---------------------|--------|--------------------------------------------------------------------------|
| ids                 | string | the last job id given                                                    |
| seq                 | string | the last fence given; drawn by claim and by adopt                        |
| server              | hash   | run_id of the server last greeted, quiet_until: nothing is reaped before,|
|                     |        | clock: when upkeep last looked, looked: when a deliverer of callbacks    |
|                     |        | did, callbacks_from: none is due before, format of all of this           |
| job:<id>            | hash   | one job; fields below                                                    |
| same:<fingerprint>  | string | the id that an identical addJob gets; expires                            |
| pins                | hash   | pin → id, for every live job                                             |
| queued              | zset   | id → id, every queued job                                                |
| wait:<place>        | zset   | id → order, the queued jobs that can be claimed, of one place            |
| parked:<place>      | zset   | id → order, those that cannot: a better one of their submitter waits, or |
|                     |        | it is at its cap                                                         |
| mine:<place>⇥<who>  | zset   | id → order, the queued jobs of one submitter                             |
| heads:<lane>⇥<who>  | hash   | class → the one job of a submitter that can be claimed                   |
| running:<lane>, running:<lane>⇥<who> | set | the held jobs of one lane, of one submitter                |
| lane:<lane>         | hash   | its virtual time vt, weight, cap, cap for each submitter, mean_ms of a   |
|                     |        | job, eta_error_ms; expires when it has had no job for long               |
| lanes:<class>       | zset   | lane → vt, the lanes that have a job to claim now                        |
| vclock              | string | the virtual time of the last lane that had its turn, or that ran last    |
| mean_ms             | string | the mean time of the last jobs of all lanes                              |
| classes, classes:<lane> | hash | class → number of queued jobs, of all lanes, of one                  |
| labelled:<class>    | set    | the classes with queued jobs that require this and labels                |
| offers:<class>      | zset   | what hosts with labels offer of it (all their labels) → when last        |
| bell:<class>        | list   | a token for each job added lately, bounded; carries nothing, BLPOP wakes |
| held                | zset   | id → end of its lease, every assigned or running job                     |
| machines            | hash   | machine → id of the job that was started on it                           |
| claim:<instance>    | hash   | a dispatcher's last claim request and what it got (id:seq …); expires    |
| secret:<id>         | string | the credentials that came with a live job; expires                       |
| dead                | zset   | id → when it ended; the history                                          |
| outputs:<lab>       | hash   | output name → the newest job added under it                              |
| live:<id>           | string | the output so far of a running job; expires                              |
| outbox              | zset   | id → when its callback is due                                            |
| unsent              | zset   | id → when its callback was given up                                      |
| counters            | hash   | what has happened, for /info and /metrics                                |
| dispatchers         | hash   | install → what it last published of itself                               |
| beats               | hash   | install → when                                                           |
| control:<instance>  | list   | a token to make a dispatcher look at its jobs and orders now, bounded    |
| orders:<install>    | hash   | what an operator wants of a dispatcher: paused, slots, resumed (times)   |
| pools               | hash   | image, or * for all others → the order for its prepared machines         |
| fresh:<image>       | hash   | dispatcher's instance → its fresh machines, how many more it may make,   |
|                     |        | until when that counts, its labels (n|n|ms|+a+b); none are not kept;     |
|                     |        | expires                                                                  |
| builds              | hash   | image and what is to be done (an archive to load, pull, push) → each     |
|                     |        | host's verdict                                                           |
| upkeep              | string | which dispatcher does the upkeep; expires                                |

A class is what a job requires of its dispatcher: its image, or `IMAGE|quiet`, and the labels, as in `IMAGE|+avx512+gpu`
or `IMAGE|quiet+gpu`; a lane is a course; a place is `<class>⇥<lane>`; ⇥ is a tab, which no name can hold.

Fields of a job: spec (msgpack), class, lane, who (its submitter), state, order, slots, longest_ms (it
can take no longer), charged and claimed_ms (what its lane was charged with, and since when it is held),
eta_ms (when it was foretold to start), added_ms, lab, out, pin, attempts, retries, seq, holder, machine,
vmms, started_ms, ended_ms, ended_seq, verdict, output, note, intent, trace, cb (its callback URL, if
any), cb_min_ms and cb_wait_ms (settings when it was added), answered_ms (when the answer that gave its
id was last flushed), asked_ms (when addJob last came), cb_tries, cb_log (lines "<ms>|<what came of a
try>"), cb_done_ms (when it was last delivered), resent_ms (when an operator last had it sent again),
leaving (its output is being removed, and then it is forgotten).
"""

from __future__ import annotations

FORMAT = 2
"""Of the data as described above. Older data is brought to it by migrate.lua when a server is greeted; from newer
data a process keeps away."""

BELLS_MAX = 64
"""Tokens in one bell; a lost or a missing one costs one BLPOP timeout."""


def bell(prefix: str, kind: str) -> str:
    return f"{prefix}bell:{kind}"


def control(prefix: str, instance: str) -> str:
    return f"{prefix}control:{instance}"
