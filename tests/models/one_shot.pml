/* SPDX-FileCopyrightText: The pyallreduce authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * protocol/one_shot.h: N ranks make CALLS calls of 0 to V vectors each, through mailboxes of two
 * slots that are re-armed after reading. One block: block b of a rank meets only block b of others.
 *
 * Stores are relaxed: a call issues all its pushes, which are then performed in any order, at any
 * time before its grid ends (ORDERED: one by one, for four ranks). Reading is one step at the last
 * possible moment and re-arming falls together with the grid's end: both are the worst case, as
 * nobody can see an earlier reading, and an earlier re-arming only helps.
 *
 * Proves: a push finds its mailbox empty (nothing unread is overwritten); what is read is this
 * call's; every call ends.
 * Assumes: a finished grid's stores are performed before the next grid of the stream pushes.
 *
 * Must fail: ONE_SLOT, NO_SIGNATURE, SKIP_WORD (a vector is taken with its last word missing),
 * REARM_SHORT (all but the last vector read), NO_REARM, REARM_EARLY (before reading),
 * REARM_FLOATS (the assumption dropped: re-arming is performed some time during the next call).
 */
#ifndef N
#define N 2
#endif
#ifndef CALLS
#define CALLS 4
#endif
#ifndef V
#define V 2
#endif
#ifdef ONE_SLOT
#define SLOTS 1
#else
#define SLOTS 2
#endif
#define EMPTY 0
#define AT(slot, owner, sender) (((slot) * N + (owner)) * N + (sender))
#define SIG(slot, owner, sender) sig[AT(slot, owner, sender)]
#define BOX(slot, owner, sender, i) box[AT(slot, owner, sender) * V + (i)]
#ifdef NO_SIGNATURE
#define SIGNED(f) true
#define FREE(place) true
#else
#define SIGNED(f) (SIG(s, r, f) != EMPTY)
#define FREE(place) ((place) == EMPTY)
#endif
#ifdef SKIP_WORD
#define LAST(f, i) (n == (i) + 1)
#else
#define LAST(f, i) false
#endif
#define VECTOR(f, i) (n <= (i) || LAST(f, i) || BOX(s, r, f, i) != EMPTY)
#define HERE(f) (r == (f) || (SIGNED(f) && VECTOR(f, 0) && (V < 2 || VECTOR(f, 1))))
#define ALL_HERE (HERE(0) && HERE(1) && (N < 3 || HERE(2)) && (N < 4 || HERE(3)))

byte sig[SLOTS * N * N]; /* EMPTY, or the number of the call, from 1 */
byte box[SLOTS * N * N * V];
byte size[CALLS]; /* of each call, in vectors: the same on all ranks */

inline issue() { /* bit p * (V + 1): the signature for p; the next V bits: its vectors */
  p = 0;
  do
  :: p < N ->
     if
     :: p != r -> i = 0; do :: i <= n -> todo = todo | (1 << (p * (V + 1) + i)); i++ :: else -> break od
     :: else
     fi;
     p++
  :: else -> break
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
  p = bit_ / (V + 1); i = bit_ % (V + 1);
  if
  :: i == 0 -> assert(FREE(SIG(s, p, r))); SIG(s, p, r) = e + 1
  :: else -> assert(BOX(s, p, r, i - 1) == EMPTY); BOX(s, p, r, i - 1) = e + 1
  fi
}
inline rearm(slot, count) {
  p = 0;
  do
  :: p < N ->
     SIG(slot, r, p) = EMPTY;
     i = 0; do :: i < count -> BOX(slot, r, p, i) = EMPTY; i++ :: else -> break od;
     p++
  :: else -> break
  od
}
inline read() {
  p = 0;
  do
  :: p < N ->
     i = 0; do :: i < n && p != r -> assert(BOX(s, r, p, i) == e + 1); i++ :: else -> break od;
     p++
  :: else -> break
  od
}

proctype rank(byte r) {
  byte e, n, s, p, i, bit_, owed, was;
  int todo;
  do
  :: e == CALLS -> break
  :: else ->
     d_step { s = e % SLOTS; n = size[e]; issue(); p = 0; i = 0 }
#ifdef REARM_EARLY
     d_step { rearm(s, n); p = 0; i = 0 }
#endif
     do
     :: atomic { todo != 0 -> perform() }
#ifdef REARM_FLOATS
     :: d_step { owed != 0 -> rearm(owed - 1, was); owed = 0; p = 0; i = 0 }
#endif
     :: atomic {
          todo == 0 && owed == 0 && ALL_HERE -> read();
#if defined(REARM_FLOATS)
          owed = s + 1; was = n;
#elif defined(REARM_SHORT)
          rearm(s, n - 1);
#elif !defined(REARM_EARLY) && !defined(NO_REARM)
          rearm(s, n);
#endif
          p = 0; i = 0; bit_ = 0; e++; break
        }
     od
  od
}

init {
  atomic {
    byte c, k;
    for (c : 0 .. CALLS - 1) { k = 0; do :: k < V -> k++ :: break od; size[c] = k }
    for (k : 0 .. N - 1) { run rank(k) }
  }
}
