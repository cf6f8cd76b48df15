/* SPDX-FileCopyrightText: The pyallreduce authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * protocol/wait.h: waits end by arrival, by a stop word, or by a deadline. Two-hop calls (the richer
 * case): everybody sends a shard to every owner, an owner sends its result to everybody. One rank
 * may pass its deadline in any wait. STALL: the last rank may make no more calls. KILL, instead of
 * both: one rank may die between any two of its steps, with any part of its sending performed, and
 * the others' watchdogs hear of it at any later time. Calls after a failure are made without looking at the record, as a graph's replays are.
 *
 * Proves: a rank that completes a call got everybody's data of that call, whoever aborted or died
 * meanwhile; every survivor ends all its calls; whoever ends a call without its data knows.
 * It does not prove that all ranks complete the same calls, which is false (UNIFORM must fail): an
 * abort may race with a completion. So a step counts only where every record is clean.
 *
 * Must fail: NO_DEADLINE (with STALL: nobody notices), NO_WATCHDOG (with KILL), TELL_NOBODY,
 * PUBLISH_AFTER_ABORT (an owner sends its result without all shards), NOT_STICKY (later calls of a
 * stopped rank run on), UNIFORM.
 */
#ifndef N
#define N 2
#endif
#ifndef CALLS
#define CALLS 3
#endif
#define EMPTY 0
#define POISON 255
#define AT(slot, owner, sender) (((slot) * N + (owner)) * N + (sender))

byte sig[2 * N * N], shard[2 * N * N], result[2 * N * N]; /* EMPTY, POISON, or a call from 1 */
bool stop[N];    /* the stop word in the slab: peers may write it */
bool host[N];    /* the stop word in the record: the watchdog writes it */
bool clean[N];   /* the record's state */
byte completed[N];    /* calls completed */
byte entered[N]; /* calls begun */
bool struck, dead[N], anybody_dead;

inline die() { /* at most one rank, at any of its steps */
#ifdef KILL
  if :: !anybody_dead -> anybody_dead = true; dead[r] = true; goto gone :: true fi
#else
  skip
#endif
}
#ifdef KILL
#define MAY_STRIKE false
#else
#define MAY_STRIKE !struck
#endif
#ifdef PUBLISH_AFTER_ABORT
#define PUBLISH true
#else
#define PUBLISH false
#endif

/* A lane that fails drains from there on, and reports when its block leaves the call. */
inline fail() { ok = false; failed = true }
inline report() {
  clean[r] = false; stop[r] = true;
#ifndef TELL_NOBODY
  q = 0;
  do :: q < N -> stop[q] = true; q++ :: else -> break od
#endif
}
/* One wait: `here`, or the end of the call's validity. */
inline wait(here) {
  if
  :: here -> skip
  :: ok && !(here) && (stop[r] || host[r]) -> fail()
#ifndef NO_DEADLINE
  :: ok && !(here) && MAY_STRIKE -> struck = true; fail()
#endif
  :: !ok -> skip
  fi
}
/* To and from every peer, through one kind of mailbox. */
#define TO_ALL(box, what) \
  p = 0; \
  do :: p < N && p != r -> die(); if :: ok || PUBLISH -> box[AT(s, p, r)] = what :: else fi; p++ \
     :: p == r -> p++ \
     :: p == N -> break \
  od
#define FROM_ALL(box) \
  p = 0; \
  do :: p < N && p != r -> die(); wait(box[AT(s, r, p)] != EMPTY); p++ \
     :: p == r -> p++ \
     :: p == N -> break \
  od
#define CHECK(box) \
  p = 0; \
  do :: p < N -> assert(p == r || box[AT(s, r, p)] == e + 1); assert(entered[p] > e); p++ \
     :: p == N -> break \
  od

proctype rank(byte r) {
  byte e, s, p, q;
  bool ok, failed;
  do
  :: e == CALLS -> break
  :: else ->
     s = e % 2; entered[r] = e + 1; ok = true;
#ifdef STALL /* this rank stays away from here on: its peers pass their deadline */
     if :: r == N - 1 -> goto gone :: true fi;
#endif
#ifndef NOT_STICKY
     if :: stop[r] -> fail() :: else fi;
#endif
     TO_ALL(sig, e + 1);
     TO_ALL(shard, e + 1);
     FROM_ALL(sig);
     FROM_ALL(shard);
     if :: ok -> atomic { skip; CHECK(shard); p = 0 } :: else fi;
     TO_ALL(result, (ok -> e + 1 : POISON));
     FROM_ALL(result);
     atomic {
       if :: ok -> CHECK(result); completed[r]++ :: else fi;
       if :: failed -> report(); failed = false :: else fi;
       assert(ok || !clean[r]);
       p = 0; do :: p < N -> sig[AT(s, r, p)] = EMPTY; shard[AT(s, r, p)] = EMPTY; result[AT(s, r, p)] = EMPTY; p++ :: else -> break od;
       p = 0; q = 0
     }
     e++
  od;
  goto gone;
gone: skip
}

active proctype watchdogs() {
  byte k;
end: anybody_dead ->
#ifndef NO_WATCHDOG
  for (k : 0 .. N - 1) { host[k] = true }
#endif
}

init {
  atomic { byte k; for (k : 0 .. N - 1) { clean[k] = true; run rank(k) } }
#ifdef UNIFORM
  (_nr_pr == 2) -> assert(completed[0] == completed[1])
#endif
}
