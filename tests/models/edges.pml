/* SPDX-FileCopyrightText: The pyallreduce authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * protocol/edges.h: the ping-pong of two ranks through mailboxes of two slots that are not re-armed.
 * A vector is two words, each stored and loaded by itself, in any order (relaxed).
 *
 * Proves: on a sound edge every word is the last one's or the next one's, so that a third value is
 * corruption; both ends finish all rounds.
 *
 * Must fail: ONE_SLOT.
 */
#ifndef ROUNDS
#define ROUNDS 5
#endif
#ifdef ONE_SLOT
#define SLOTS 1
#else
#define SLOTS 2
#endif
#define WORD(owner, k) word[((owner) * SLOTS + round % SLOTS) * 2 + (k)]
#define NEXT (round + 1)
#define LAST (round < SLOTS -> 0 : round + 1 - SLOTS)

byte word[2 * SLOTS * 2]; /* 0: armed; else the number of the round, from 1 */

active [2] proctype rank() {
  byte round, k, seen, other;
  byte r = _pid;
  do
  :: round == ROUNDS -> break
  :: else ->
     if
     :: WORD(1 - r, 0) = NEXT; WORD(1 - r, 1) = NEXT
     :: WORD(1 - r, 1) = NEXT; WORD(1 - r, 0) = NEXT
     fi;
     do
     :: atomic { assert(WORD(r, 0) == NEXT || WORD(r, 0) == LAST); seen = (WORD(r, 0) == NEXT) }
        atomic { assert(WORD(r, 1) == NEXT || WORD(r, 1) == LAST); other = (WORD(r, 1) == NEXT) }
        if :: seen && other -> break :: else fi
     od;
     seen = 0; other = 0; round++
  od
}
