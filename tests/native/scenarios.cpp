// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// What the protocol promises, one scenario each, with ranks as threads: `scenarios NAME [SEED]`
// exits 0 if it holds, `scenarios` lists the names. Built with weak_memory.h, whose seed is SEED.
#include <cstdlib>
#include <map>
#include <string>

#include "scenarios/calls.h"
#include "scenarios/differ.h"
#include "scenarios/edges.h"
#include "scenarios/places.h"
#include "scenarios/values.h"
#include "scenarios/waits.h"

namespace {

using namespace pyallreduce::test;

const std::map<std::string, void (*)()> kScenarios = {
    {"smoke", smoke},
    {"sequences", sequences},
    {"apart", apart},
    {"chunks", chunks},
    {"laps", laps},
    {"silent_from_the_second_lap", silent_from_the_second_lap},
    {"one_ahead", one_ahead},
    {"wrap", wrap},
    {"values", values},
    {"order", order},
    {"mismatch", mismatch},
    {"mismatch_beside_silence", mismatch_beside_silence},
    {"epochs_differ", epochs_differ},
    {"refusal", refusal},
    {"refusal_then_replay", refusal_then_replay},
    {"deadline", deadline},
    {"drained", drained},
    {"no_result_of_half_a_sum", no_result_of_half_a_sum},
    {"host_stop", host_stop},
    {"told_by_a_peer", told_by_a_peer},
    {"stale_stop", stale_stop},
    {"absent", absent},
    {"asked_again", asked_again},
    {"another_is_absent", another_is_absent},
    {"patience", patience},
    {"notice", notice},
    {"overlap", overlap},
    {"generations", generations},
    {"ping_pong", ping_pong},
    {"ping_pong_into_a_mirror", ping_pong_into_a_mirror},
    {"ping_pong_of_garbage", ping_pong_of_garbage},
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    for (const auto& [name, body] : kScenarios) std::printf("%s\n", name.c_str());
    return 0;
  }
  if (argc > 2) setenv("PYALLREDUCE_TEST_SEED", argv[2], 1);
  kScenarios.at(argv[1])();
  return pyallreduce::test::failed ? 1 : 0;
}
