/* SPDX-FileCopyrightText: The pyallreduce authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * protocol/signature.h: in each call each rank makes a call of its own choice, or refuses. A call is
 * a kind with one vector of data: 1 and 2 are of one algorithm and share its mailboxes, 3 is of
 * another; all share the places of signatures and the epochs. A refusal sends its signature alone.
 * Whoever finds a difference reports it and raises everybody's stop word; a rank that waits ends by
 * a stop word. There is no deadline here: a difference must be found without one.
 *
 * Proves: a rank that completes a call got everybody's data of that very call; every rank ends; a
 * call that one rank refused is completed by nobody, and one that two ranks made differently
 * neither.
 *
 * TELL_NOBODY must pass without refusals (NO_REFUSAL): of three ranks, any two that differ both see
 * it, and a third differs from one of them.
 *
 * Must fail: OWN_PLACES (signatures by kind: those who differ never meet), NO_COMPARE,
 * OUTPUT_EARLY (stored before the signatures are checked), REFUSE_SILENTLY.
 */
#ifndef N
#define N 3
#endif
#ifndef CALLS
#define CALLS 2
#endif
#define EMPTY 0
#define REFUSED 4
#define AT(slot, owner, sender) (((slot) * N + (owner)) * N + (sender))
#ifdef OWN_PLACES
#define SIG(kind, slot, owner, sender) sig[(kind) * 2 * N * N + AT(slot, owner, sender)]
#define PLACES 5
#else
#define SIG(kind, slot, owner, sender) sig[AT(slot, owner, sender)]
#define PLACES 1
#endif
#define BOX(kind, slot, owner, sender) box[((kind) / 3) * 2 * N * N + AT(slot, owner, sender)]
#define CALL(kind) (8 * (e + 1) + (kind)) /* what a signature and its data say */

byte sig[PLACES * 2 * N * N];
byte box[2 * 2 * N * N];
bool stop[N];
byte made[CALLS * N]; /* the kind that each rank has made of each call; 0: not yet */

inline tell() {
  stop[r] = true;
#ifndef TELL_NOBODY
  p = 0; do :: p < N -> stop[p] = true; p++ :: else -> break od; p = 0
#endif
}
#ifdef NO_COMPARE
#define SAME(word) ((word) != EMPTY)
#else
#define SAME(word) ((word) == CALL(kind))
#endif
#ifdef OUTPUT_EARLY
#define CHECKED true
#else
#define CHECKED (checked == N - 1)
#endif

proctype rank(byte r) {
  byte e, kind, s, p, next, checked, got;
  do
  :: e == CALLS || stop[r] -> break
  :: else ->
     s = e % 2;
     if
     :: kind = 1
     :: kind = 2
     :: kind = 3
#ifndef NO_REFUSAL
     :: kind = REFUSED
#endif
     fi;
     made[e * N + r] = kind;
     next = 0; /* peers that have been sent to */
     do
     :: next < N && next != r ->
        if :: kind < REFUSED -> BOX(kind, s, next, r) = CALL(kind) :: else fi;
#ifdef REFUSE_SILENTLY
        if :: kind < REFUSED -> SIG(kind, s, next, r) = CALL(kind) :: else fi;
#else
        SIG(kind, s, next, r) = CALL(kind);
#endif
        next++
     :: next == r -> next++
     :: next == N -> break
     od;
     if :: kind == REFUSED -> break :: else fi;
     checked = 0; got = 0; p = 0;
#ifndef OUTPUT_EARLY
     do /* the signer's lanes */
     :: p < N && p != r ->
        if
        :: SAME(SIG(kind, s, r, p)) -> SIG(kind, s, r, p) = EMPTY; checked++; p++
        :: SIG(kind, s, r, p) != EMPTY && !SAME(SIG(kind, s, r, p)) -> atomic { tell() }; goto end
        :: stop[r] -> goto end
        fi
     :: p == r -> p++
     :: p == N -> break
     od;
#endif
     p = 0;
     do /* the data lanes */
     :: p < N && p != r ->
        if
        :: BOX(kind, s, r, p) != EMPTY -> BOX(kind, s, r, p) = EMPTY; got++; p++
        :: stop[r] -> goto end
        fi
     :: p == r -> p++
     :: p == N -> break
     od;
     if
     :: CHECKED && !stop[r] -> /* stores its output */
        p = 0;
        do
        :: p < N -> assert(made[e * N + p] == kind); p++
        :: else -> break
        od
     :: else -> goto end
     fi;
     e++
  od;
end: skip
}

init { atomic { byte k; for (k : 0 .. N - 1) { run rank(k) } } }
