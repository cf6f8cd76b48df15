/* SPDX-FileCopyrightText: The pyallreduce authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * pyallreduce/native.py, renew(), and slab.py, arm(): GENERATIONS generations of CALLS calls each. In
 * every generation but the last, a wait may pass its deadline or be stopped by the host; the calls
 * behind it are launched all the same (graph replays) and drain. Then every rank synchronises with
 * its kernels, says so in a joint verdict, arms its slab, and says that. Stores to peers, of data
 * and of stop words, are under way until `wire` performs them, in any order; a grid ends when its
 * own are performed. The slab holds garbage before it is armed for the first time.
 *
 * Proves: the last generation completes every call with its own data, however the earlier ones
 * ended; a stop word of an old generation does nothing; no armed mailbox receives an old store.
 *
 * Must fail: NO_SYNC (the verdict does not wait for this rank's kernels), NO_DRAINED (a slab is armed
 * before all ranks have said that), NO_ARMED (calls begin before all slabs are armed),
 * EXPORT_BEFORE_FILL (the same at start-up), NO_TAG (stop words carry no generation).
 */
#ifndef N
#define N 2
#endif
#ifndef CALLS
#define CALLS 3
#endif
#ifndef GENERATIONS
#define GENERATIONS 2
#endif
#define EMPTY 0
#define GARBAGE 255
#define AT(slot, owner, sender) (((slot) * N + (owner)) * N + (sender))
#define DATA (generation * 16 + e + 1)
#define HERE(f) (r == (f) || box[AT(s, r, f)] != EMPTY)
#define ALL_HERE (HERE(0) && HERE(1) && (N < 3 || HERE(2)))
#define PERFORMED(p) (data[r * N + (p)] == 0 && word[r * N + (p)] == 0)
#define ALL_PERFORMED (PERFORMED(0) && PERFORMED(1) && (N < 3 || PERFORMED(2)))
#ifdef NO_TAG
#define STOPS(w) ((w) != 0)
#else
#define STOPS(w) ((w) == generation)
#endif

byte box[2 * N * N];
byte stop[N], host[N];                 /* stop words: 0 or the generation that they stop */
byte data[N * N], slot[N * N], word[N * N]; /* under way, by sender and receiver */
byte record[N];                        /* the generation in a rank's record: its watchdog reads it */
byte drained[GENERATIONS + 1], armed[GENERATIONS + 1];

#define UNDER_WAY(k) (data[k] != 0 || word[k] != 0)
inline perform(k) {
  if
  :: data[k] != 0 -> assert(box[AT(slot[k], (k) % N, (k) / N)] == EMPTY); box[AT(slot[k], (k) % N, (k) / N)] = data[k]; data[k] = 0
  :: word[k] != 0 -> stop[(k) % N] = word[k]; word[k] = 0
  fi
}
active proctype wire() {
end:
  do
  :: atomic { UNDER_WAY(1) -> perform(1) }
  :: atomic { UNDER_WAY(2) -> perform(2) }
#if N == 3
  :: atomic { UNDER_WAY(3) -> perform(3) }
  :: atomic { UNDER_WAY(5) -> perform(5) }
  :: atomic { UNDER_WAY(6) -> perform(6) }
  :: atomic { UNDER_WAY(7) -> perform(7) }
#endif
  od
}

/* Tells rank 0 to stop, or does not, in a word that may be late. */
active proctype watchdog() {
  byte seen;
end:
  atomic { record[0] == 1 -> seen = record[0] }
  host[0] = seen
}

inline arm() {
  p = 0;
  do
  :: p < N -> d_step { box[AT(0, r, p)] = EMPTY; box[AT(1, r, p)] = EMPTY }; p++
  :: else -> break
  od;
  stop[r] = 0; host[r] = 0; record[r] = generation
}
inline report() {
  ok = false; stop[r] = generation; p = 0;
  do :: p < N -> if :: p != r -> word[r * N + p] = generation :: else fi; p++ :: else -> break od
}
inline push() {
  p = 0;
  do
  :: p < N -> if :: p != r -> data[r * N + p] = DATA; slot[r * N + p] = s :: else fi; p++
  :: else -> break
  od
}
inline read() {
  p = 0;
  do
  :: p < N -> assert(p == r || box[AT(s, r, p)] == DATA); box[AT(s, r, p)] = EMPTY; p++
  :: else -> break
  od
}

proctype rank(byte r) {
  byte generation, e, s, p;
  bool ok;
  do
  :: generation == GENERATIONS -> break
  :: else ->
     generation++; ok = true;
     arm();
     armed[generation]++;
#ifdef NO_ARMED
     if :: generation == 1 -> armed[generation] == N :: else fi;
#else
#ifdef EXPORT_BEFORE_FILL
     if :: generation > 1 -> armed[generation] == N :: else fi;
#else
     armed[generation] == N;
#endif
#endif
     e = 0;
     do
     :: e == CALLS -> break
     :: e < CALLS && (!ok || STOPS(stop[r])) -> ok = false; e++ /* drains */
     :: e < CALLS && ok && !STOPS(stop[r]) ->
        s = e % 2;
        atomic { ALL_PERFORMED -> push() }
        if
        :: atomic { ALL_HERE -> read() }
        :: atomic { STOPS(host[r]) && !(ALL_HERE) -> report() }
        :: atomic { STOPS(stop[r]) && !(ALL_HERE) -> ok = false }
        :: atomic { generation < GENERATIONS && !(ALL_HERE) -> report() } /* the deadline */
        fi;
        e++
     od;
     assert(ok || generation < GENERATIONS);
     if :: generation == GENERATIONS -> break :: else fi;
#ifndef NO_SYNC
     ALL_PERFORMED;
#endif
     drained[generation]++;
#ifndef NO_DRAINED
     drained[generation] == N
#endif
  od
}

init {
  atomic {
    byte k;
    for (k : 0 .. 2 * N * N - 1) { box[k] = GARBAGE }
    for (k : 0 .. N - 1) { run rank(k) }
  }
}
