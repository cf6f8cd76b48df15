/* SPDX-FileCopyrightText: The pyallreduce authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * protocol/signature.h, announce_refusal(), with native.py's new generation at the next eager call.
 * Every rank's program is the same CALLS calls, all of one shape, so that signatures do not tell
 * them apart; rank 0 refuses one of them. A call that follows is eager, and then begins with renew()
 * where one is due, or a graph's replay (REPLAY), of which the host sees nothing.
 *
 * Proves: nobody completes the refused call; what a rank completes was the same call on every rank;
 * every rank ends, and completes all calls that follow an eager one.
 *
 * Must fail: NO_RENEW (the refuser goes on without a new generation), REPLAY_RUNS (a replay of the
 * refuser is not stopped: its signature takes the refusal's place before a peer has read it).
 */
#ifndef N
#define N 2
#endif
#ifndef CALLS
#define CALLS 3
#endif
#define EMPTY 0
#define REFUSED 255
#define AT(slot, owner, sender) (((slot) * N + (owner)) * N + (sender))
#define SIG(f) sig[AT(s, r, f)]
#define HERE(f) (r == (f) || (SIG(f) == e + 1 && box[AT(s, r, f)] != EMPTY))
#define ALL_HERE (HERE(0) && HERE(1) && (N < 3 || HERE(2)))
#define SAYS_NO(f) (r != (f) && SIG(f) == REFUSED)
#define REFUSAL_HERE (SAYS_NO(0) || SAYS_NO(1) || (N == 3 && SAYS_NO(2)))

byte sig[2 * N * N]; /* EMPTY, REFUSED, or the epoch + 1 */
byte box[2 * N * N]; /* EMPTY, or the number of the sender's call */
bool stop[N];
byte drained, armed, refused;

inline clear() {
  p = 0;
  do
  :: p < N -> sig[AT(0, r, p)] = EMPTY; sig[AT(1, r, p)] = EMPTY; box[AT(0, r, p)] = EMPTY; box[AT(1, r, p)] = EMPTY; p++
  :: else -> break
  od
}

proctype rank(byte r) {
  byte call, e, s, p;
  bool due, replay;
  for (call : 1 .. CALLS) {
#if defined(REPLAY) || defined(REPLAY_RUNS)
    replay = call == refused + 1;
#endif
#ifndef NO_RENEW
    if
    :: due && !replay ->
       drained++; drained == N;
       d_step { clear(); stop[r] = false; e = 0; p = 0 }
       armed++; armed == N; due = false
    :: else
    fi;
#endif
    s = e % 2; p = 0;
    if
    :: r == 0 && call == refused ->
       do
       :: p < N -> if :: p != r -> sig[AT(s, p, r)] = REFUSED :: else fi; p++
       :: else -> break
       od;
#ifndef REPLAY_RUNS
       stop[r] = true;
#endif
       due = true
    :: else ->
       if :: stop[r] -> due = true; goto next :: else fi;
       do
       :: p < N -> if :: p != r -> sig[AT(s, p, r)] = e + 1; box[AT(s, p, r)] = call :: else fi; p++
       :: else -> break
       od;
       if
       :: d_step {
            ALL_HERE -> p = 0;
            do
            :: p < N -> assert(p == r || box[AT(s, r, p)] == call); sig[AT(s, r, p)] = EMPTY; box[AT(s, r, p)] = EMPTY; p++
            :: else -> break
            od;
            assert(call != refused); e++
          }
       :: atomic { REFUSAL_HERE -> p = 0; do :: p < N -> stop[p] = true; p++ :: else -> break od; due = true }
       :: stop[r] && !(ALL_HERE) -> due = true
       fi
    fi;
next: assert(call == refused || replay || !due)
  }
}

init { atomic { byte k; if :: refused = 1 :: refused = 2 fi; for (k : 0 .. N - 1) { run rank(k) } } }
