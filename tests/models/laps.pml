/* SPDX-FileCopyrightText: The pyallreduce authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * protocol/two_shot.h in laps: a call of one lap, then two of LAPS laps. A lap has S steps: shards
 * run LEAD steps ahead of the sums, and the sums LAG ahead of the gathers. One block: its data are
 * one lane, which meets its signer at the barrier of each step, and at one more before the sum if
 * it PARKS. Any owner may have nothing in the last lap of a call, so that nobody waits for its data
 * there (WHOLE: all have data).
 *
 * Stores are relaxed: pushes and signatures are performed in any order, each at any time before its
 * grid ends (IN_ORDER: as they are issued; a later one is as if its reader were slow). Re-arming is
 * performed at the last possible moment, by the fence of send_lap(), which performs no more than
 * that of the lap before, or by the grid's end: the worst case, as an earlier one only helps.
 *
 * Proves: a push finds its mailbox empty, so that nothing unread is overwritten and no re-arming
 * lands on newer data; what is read is this lap's; every call ends.
 * Assumes: a finished grid's stores are performed before the next grid of the stream pushes; what a
 * block pushes behind the check of a lap's signatures is performed behind it (tests/litmus).
 *
 * Must fail: ONE_SLOT, NO_FENCE (in send_lap), NO_CHECK (a lap does not wait for the signatures of
 * the one before), SEND_EARLY (a signature leaves a step earlier, before the last results of the
 * lap before are read), SHORT (laps of a step less than kLeastSteps: a deadlock).
 */
#ifndef N
#define N 2
#endif
#ifndef LAPS
#define LAPS 3
#endif
#ifndef LEAD
#define LEAD 1
#endif
#ifndef LAG
#define LAG 1
#endif
#ifdef SHORT
#define S (LEAD + LAG + 1)
#else
#define S (LEAD + LAG + 2)
#endif
#ifdef ONE_SLOT
#define SLOTS 1
#else
#define SLOTS 2
#endif
#ifdef SEND_EARLY
#define EARLY 1
#else
#define EARLY 0
#endif
#ifdef PARKS
#define PARKED true
#else
#define PARKED false
#endif
#define CALLS 3
#define EMPTY 0
/* What one rank sends to another in a slot: a signature, S shards, S results. */
#define WIDTH (1 + 2 * S)
#define BOXES (SLOTS * N * (N - 1) * WIDTH)
#define AT(lap, owner, sender, k) \
  (((((lap) % SLOTS) * N + (owner)) * (N - 1) + ((sender) + N - (owner) - 1) % N) * WIDTH + (k))
#define SIGNATURE(lap, owner, sender) AT(lap, owner, sender, 0)
#define SHARD(t, owner, sender) AT(e + (t) / S, owner, sender, 1 + (t) % S)
#define RESULT(t, owner, sender) AT(e + (t) / S, owner, sender, 1 + S + (t) % S)
#define OWNER(place) ((place) / (WIDTH * (N - 1)) % N)
#define SENDER(place) ((OWNER(place) + 1 + (place) / WIDTH % (N - 1)) % N)
#define HERE(place) (box[place] != EMPTY && !armed[place])
#define PEER(p) ((r + 1 + (p)) % N)
#define EXISTS(owner, t) ((t) < S * (laps - without[c * N + (owner)]))
#define SHARD_HERE(p) (!EXISTS(r, t) || HERE(SHARD(t, r, PEER(p))))
#define SHARDS_HERE (SHARD_HERE(0) && (N < 3 || SHARD_HERE(1)))
#define RESULT_HERE(p) \
  (t < LAG || !EXISTS(PEER(p), t - LAG) || HERE(RESULT(t - LAG, r, PEER(p))))
#define RESULTS_HERE (RESULT_HERE(0) && (N < 3 || RESULT_HERE(1)))
#define SIGNATURE_HERE(lap, p) HERE(SIGNATURE(lap, r, PEER(p)))
#define SIGNED(lap) (SIGNATURE_HERE(lap, 0) && (N < 3 || SIGNATURE_HERE(lap, 1)))
/* A barrier that one of a block's two has come to, the other too. */
#define MET(mine, others) (others[r] >= mine[r])
/* In step t: the lap whose first shards come next, less one; the lap that is gathered. */
#define CHECKED ((t + LEAD) / S)
#define SENT ((t + EARLY - LAG) / S)
#ifdef NO_CHECK
#define CHECKS (t == 0)
#else
#define CHECKS (t == 0 || (CHECKED > 0 && CHECKED < laps && (t + LEAD) % S == S - 1))
#endif
#define SENDS (t + EARLY >= LAG + S && SENT < laps && (t + EARLY - LAG) % S == 0)
#define END (laps * S + LAG)
#define LAPS_OF(call) ((call) == 0 -> 1 : LAPS)

byte box[BOXES];    /* EMPTY, or the number of the lap, from 1 */
byte pushed[BOXES]; /* by its sender, and not performed */
bit armed[BOXES];   /* by its owner, and not performed */
byte held;          /* how many pushes are not performed */
byte lanes[N];      /* barriers that a rank's data lane has come to, */
byte signers[N];    /* and its signer */
byte grids[N];      /* that a rank has begun */
bit without[CALLS * N]; /* that owner has nothing in the last lap of that call */

inline land(i) {
  assert(box[i] == EMPTY);
  box[i] = pushed[i]; pushed[i] = 0; held--
}
inline arm(i) {
  box[i] = EMPTY; armed[i] = 0
}
inline push(place, lap) {
  at = place;
  assert(pushed[at] == 0);
  pushed[at] = (lap) + 1; held++;
#ifdef IN_ORDER
  land(at);
#endif
  at = 0
}
inline take(place, lap) { /* what is read is re-armed */
  at = place;
  assert(box[at] == (lap) + 1);
  armed[at] = 1;
  at = 0
}
inline perform() {
  n = held;
  do
  :: pushed[at] != 0 -> land(at); break
  :: pushed[at] != 0 && n > 1 -> n--; at++
  :: pushed[at] == 0 -> at++
  od;
  at = 0; n = 0
}
inline fence(lap) {
  for (at : 0 .. BOXES - 1) {
    if
    :: armed[at] && OWNER(at) == r && at / (BOXES / SLOTS) == (lap) % SLOTS -> arm(at)
    :: else
    fi
  }
  at = 0
}
inline end_of_grid() {
  for (at : 0 .. BOXES - 1) {
    if :: armed[at] && OWNER(at) == r -> arm(at) :: else fi;
    if :: pushed[at] != 0 && SENDER(at) == r -> land(at) :: else fi
  }
  at = 0
}
inline scatter(step) {
  for (p : 0 .. N - 2) {
    if :: EXISTS(PEER(p), step) -> push(SHARD(step, PEER(p), r), e + (step) / S) :: else fi
  }
  p = 0
}
inline sum() {
  for (p : 0 .. N - 2) {
    if
    :: EXISTS(r, t) ->
       assert(box[SHARD(t, r, PEER(p))] == e + t / S + 1);
       push(RESULT(t, PEER(p), r), e + t / S)
    :: else
    fi
  }
  p = 0
}
inline finish_and_gather() {
  for (p : 0 .. N - 2) {
    if :: EXISTS(r, t) -> take(SHARD(t, r, PEER(p)), e + t / S) :: else fi;
    if
    :: t >= LAG && EXISTS(PEER(p), t - LAG) ->
       take(RESULT(t - LAG, r, PEER(p)), e + (t - LAG) / S)
    :: else
    fi
  }
  p = 0
}

proctype lane(byte r) {
  byte c, e, laps, t, p, at;
  do
  :: c == CALLS -> break
  :: else ->
     atomic { /* all of the grid before has ended */
       signers[r] == lanes[r] -> end_of_grid();
       laps = LAPS_OF(c);
       for (t : 0 .. LEAD) { scatter(t) }
       t = 0; grids[r]++;
       if :: PARKED -> lanes[r]++ :: else fi
     }
     do
     :: t == END -> break
     :: else ->
        atomic { MET(lanes, signers) && SHARDS_HERE -> sum(); lanes[r]++ }
        atomic {
          MET(lanes, signers) && RESULTS_HERE ->
          finish_and_gather(); t++; scatter(t + LEAD);
          if :: PARKED || t == END -> lanes[r]++ :: else fi
        }
     od;
     atomic { e = e + laps; c++; t = 0; laps = 0 }
  od
}

inline send(lap) {
  for (p : 0 .. N - 2) { push(SIGNATURE(lap, PEER(p), r), lap) }
  p = 0
}
inline check(lap) {
  for (p : 0 .. N - 2) { take(SIGNATURE(lap, r, PEER(p)), lap) }
  p = 0
}
proctype signer(byte r) {
  byte c, e, laps, t, p, at;
  do
  :: c == CALLS -> break
  :: else ->
     atomic { grids[r] > c -> laps = LAPS_OF(c); send(e) }
     do
     :: t == END -> break
     :: else ->
        atomic {
          !CHECKS || SIGNED(e + CHECKED) ->
          if :: CHECKS -> check(e + CHECKED) :: else fi;
          signers[r]++
        }
        if :: PARKED -> atomic { MET(signers, lanes) -> signers[r]++ } :: else fi;
        atomic {
          MET(signers, lanes) ->
          if
          :: SENDS ->
#ifndef NO_FENCE
             fence(e + SENT - 1);
#endif
#ifndef NO_CHECK
             send(e + SENT)
#endif
          :: else
          fi;
          t++
        }
     od;
     atomic { signers[r]++; e = e + laps; c++; t = 0; laps = 0 }
  od
}

proctype memory() {
  byte at, n;
end:
  do
  :: atomic { held > 0 -> perform() }
  od
}

init {
  atomic {
    byte k;
#ifndef WHOLE
    for (k : 0 .. CALLS * N - 1) { if :: without[k] = 0 :: without[k] = 1 fi }
#endif
    for (k : 0 .. N - 1) { run lane(k); run signer(k) }
    run memory()
  }
}
