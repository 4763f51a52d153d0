// One layer's attention, shared out over the team: by tiles of queries and key heads, and where
// those are too few, by runs of blocks as well.
#pragma once
#include <atomic>
#include <memory>

#include "memory.h"
#include "pool.h"
#include "types.h"

namespace urial::cpu {

class Attend {
 public:
  Attend(const Kernels& kernels, Team& team) : k_(kernels), team_(team) {}

  // In how many parts a call is best computed: enough for all threads, none of them tiny.
  int parts(const AttentionArgs& args) const;
  // Before team.run(): memory for the parts of calls like this one. Fills args.part_memory.
  void prepare(AttentionArgs& args);
  // Inside team.run(), by each thread. No bit of the result depends on args.parts or
  // args.tile_rows.
  void run(const AttentionArgs& args);

 private:
  const Kernels& k_;
  Team& team_;
  Memory memory_;
  std::unique_ptr<std::atomic<int>[]> done_;  // [K] parts of a key head
};

}  // namespace urial::cpu
