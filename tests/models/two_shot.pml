/* SPDX-FileCopyrightText: The pyallreduce authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * protocol/two_shot.h: as one_shot.pml, with two hops. Rank r owns the r-th part of the message;
 * everybody pushes shards to the owners, an owner pushes each result when its shards are here. The
 * last parts may be short or empty. MIXED: each call is of either algorithm; they share signatures
 * and epochs and have mailboxes of their own (one-shot's carry one vector here).
 *
 * Proves and assumes what one_shot.pml does, for both kinds of mailbox, and for any alternation.
 *
 * Must fail: ONE_SLOT, NO_SIGNATURE, RESULT_EARLY (sent before all shards are here), NO_REARM,
 * REARM_FLOATS (as in one_shot.pml).
 */
#ifndef N
#define N 2
#endif
#ifndef CALLS
#define CALLS 3
#endif
#ifndef V
#define V 1 /* vectors of a part */
#endif
#ifdef ONE_SLOT
#define SLOTS 1
#else
#define SLOTS 2
#endif
#define EMPTY 0
#define ONE 1
#define TWO 2
#define AT(slot, owner, sender) (((slot) * N + (owner)) * N + (sender))
#define SIG(slot, owner, sender) sig[AT(slot, owner, sender)]
#define BOX(slot, owner, sender) box[AT(slot, owner, sender)]
#define SHARD(slot, owner, sender, i) shard[AT(slot, owner, sender) * V + (i)]
#define RESULT(slot, owner, sender, i) result[AT(slot, owner, sender) * V + (i)]
#define PART ((n + N - 1) / N)
#define EXISTS(owner, i) (how == TWO && (i) < PART && (owner) * PART + (i) < n)
#ifdef NO_SIGNATURE
#define SIGNED(f) true
#define FREE(place) true
#else
#define SIGNED(f) (SIG(s, r, f) != EMPTY)
#define FREE(place) ((place) == EMPTY)
#endif
#define SHARD_HERE(f, i) (r == (f) || SHARD(s, r, f, i) != EMPTY)
#define SHARDS_HERE(i) \
  (SHARD_HERE(0, i) && SHARD_HERE(1, i) && (N < 3 || SHARD_HERE(2, i)) && (N < 4 || SHARD_HERE(3, i)))
#define RESULT_HERE(f, i) (!EXISTS(f, i) || RESULT(s, r, f, i) != EMPTY)
#define HERE(f) \
  (r == (f) || (SIGNED(f) && RESULT_HERE(f, 0) && (V < 2 || RESULT_HERE(f, 1)) && \
                (how == TWO || n == 0 || BOX(s, r, f) != EMPTY)))
#define ALL_HERE (HERE(0) && HERE(1) && (N < 3 || HERE(2)) && (N < 4 || HERE(3)))
/* Of a peer's pushes: bit 0 the signature, then the shards (one-shot: its vector), the results. */
#define WIDTH (1 + 2 * V)
#define BIT(p, k) (1 << ((p) * WIDTH + (k)))

byte sig[SLOTS * N * N]; /* EMPTY, or the number of the call, from 1 */
byte box[SLOTS * N * N];
byte shard[SLOTS * N * N * V];
byte result[SLOTS * N * N * V];
byte size[CALLS]; /* in vectors of the whole message; the same on all ranks */
byte kind[CALLS];

inline issue() {
  p = 0;
  do
  :: p < N ->
     i = 0;
     do
     :: i < V && p != r && EXISTS(p, i) -> todo = todo | BIT(p, 1 + i); i++
     :: i < V && !(p != r && EXISTS(p, i)) -> i++
     :: i == V -> break
     od;
     if
     :: p != r -> todo = todo | BIT(p, 0);
        if :: how == ONE && n > 0 -> todo = todo | BIT(p, 1) :: else fi
     :: else
     fi;
     p++
  :: else -> break
  od;
  i = 0;
  do
  :: i < V && EXISTS(r, i) -> sums = sums | (1 << i); i++
  :: i < V && !EXISTS(r, i) -> i++
  :: i == V -> break
  od
}
inline perform() {
  bit_ = 0;
  do
  :: todo & (1 << bit_) -> break
#ifdef ORDERED
  :: !(todo & (1 << bit_)) -> bit_++
#else
  :: todo >> (bit_ + 1) -> bit_++
#endif
  od;
  todo = todo & ~(1 << bit_);
  p = bit_ / WIDTH; i = bit_ % WIDTH;
  if
  :: i == 0 -> assert(FREE(SIG(s, p, r))); SIG(s, p, r) = e + 1
  :: i > 0 && how == ONE -> assert(BOX(s, p, r) == EMPTY); BOX(s, p, r) = e + 1
  :: i > 0 && i <= V && how == TWO -> assert(SHARD(s, p, r, i - 1) == EMPTY); SHARD(s, p, r, i - 1) = e + 1
  :: i > V && how == TWO -> assert(RESULT(s, p, r, i - 1 - V) == EMPTY); RESULT(s, p, r, i - 1 - V) = e + 1
  fi
}
inline sum(k) { /* the k-th vector of this rank's part: its shards are read, its result is issued */
  sums = sums & ~(1 << (k));
  p = 0;
  do
  :: p < N && p != r -> assert(SHARD(s, r, p, k) == e + 1); todo = todo | BIT(p, 1 + V + (k)); p++
  :: p == r -> p++
  :: p == N -> break
  od
}
inline rearm(slot) {
  p = 0;
  do
  :: p < N ->
     SIG(slot, r, p) = EMPTY; BOX(slot, r, p) = EMPTY;
     i = 0; do :: i < V -> SHARD(slot, r, p, i) = EMPTY; RESULT(slot, r, p, i) = EMPTY; i++ :: else -> break od;
     p++
  :: else -> break
  od
}
inline read() {
  p = 0;
  do
  :: p < N ->
     if :: p != r && how == ONE && n > 0 -> assert(BOX(s, r, p) == e + 1) :: else fi;
     i = 0;
     do
     :: i < V && p != r && EXISTS(p, i) -> assert(RESULT(s, r, p, i) == e + 1); i++
     :: i < V && !(p != r && EXISTS(p, i)) -> i++
     :: i == V -> break
     od;
     p++
  :: else -> break
  od
}

proctype rank(byte r) {
  byte e, n, how, s, p, i, bit_, sums, owed;
  int todo;
  do
  :: e == CALLS -> break
  :: else ->
     d_step { s = e % SLOTS; n = size[e]; how = kind[e]; issue(); p = 0; i = 0 }
     do
     :: atomic { todo != 0 -> perform() }
#ifdef RESULT_EARLY
     :: atomic { (sums & 1) -> sum(0); p = 0 }
#else
     :: atomic { (sums & 1) && SHARDS_HERE(0) -> sum(0); p = 0 }
     :: atomic { (sums & 2) && SHARDS_HERE(1) -> sum(1); p = 0 }
#endif
#ifdef REARM_FLOATS
     :: d_step { owed != 0 -> rearm(owed - 1); owed = 0; p = 0; i = 0 }
#endif
     :: atomic {
          todo == 0 && sums == 0 && owed == 0 && ALL_HERE -> read();
#if defined(REARM_FLOATS)
          owed = s + 1;
#elif !defined(NO_REARM)
          rearm(s);
#endif
          p = 0; i = 0; bit_ = 0; e++; break
        }
     od
  od
}

init {
  atomic {
    byte c, k;
    for (c : 0 .. CALLS - 1) {
      k = 0; do :: k < N * V -> k++ :: break od; size[c] = k;
#ifdef MIXED
      if :: kind[c] = ONE :: kind[c] = TWO fi
#else
      kind[c] = TWO
#endif
    }
    for (k : 0 .. N - 1) { run rank(k) }
  }
}
