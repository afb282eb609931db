#ifndef SLIPSTREAM_KERNELS_SLOT_MAP_H_
#define SLIPSTREAM_KERNELS_SLOT_MAP_H_

#include <cstdint>
#include <vector>

namespace slipstream {

// Where each of some ids has its place. A worker asks for four times the ids of a batch in a step,
// in no order, and with std::unordered_map that cost as much as all else that a policy does there.
// Open addressing, at most half full.
class SlotMap {
 public:
  SlotMap() : places_(16, Place{}) {}

  int64_t size() const { return size_; }

  // The slot of an id, or -1.
  int32_t Find(int64_t id) const { return places_[PlaceOf(id)].slot; }

  // Begins to load what Find() will read.
  void Prefetch(int64_t id) const { __builtin_prefetch(&places_[Home(id)]); }

  // Sets the slot, at least 0, of an id, at least 0.
  void Set(int64_t id, int32_t slot) {
    if (2 * (size_ + 1) > static_cast<int64_t>(places_.size())) Grow();
    Place& place = places_[PlaceOf(id)];
    size_ += place.slot < 0;
    place = {id, slot};
  }

  // Forgets an id, if it is known.
  void Erase(int64_t id) {
    size_t hole = PlaceOf(id);
    if (places_[hole].slot < 0) return;
    --size_;
    // What lies behind moves up, so that no search ends at the hole.
    const size_t mask = places_.size() - 1;
    for (size_t at = (hole + 1) & mask; places_[at].slot >= 0; at = (at + 1) & mask) {
      const size_t home = Home(places_[at].id);
      if (((at - home) & mask) >= ((at - hole) & mask)) {
        places_[hole] = places_[at];
        hole = at;
      }
    }
    places_[hole] = {};
  }

 private:
  struct Place {
    int64_t id = -1;
    int32_t slot = -1;
  };

  // Fibonacci hashing: the product's high bits depend on all bits of the id.
  size_t Home(int64_t id) const {
    return static_cast<size_t>(static_cast<uint64_t>(id) * 0x9E3779B97F4A7C15ull >> (64 - bits_));
  }

  // Where an id is, or would be set.
  size_t PlaceOf(int64_t id) const {
    const size_t mask = places_.size() - 1;
    size_t at = Home(id);
    while (places_[at].id != id && places_[at].slot >= 0) at = (at + 1) & mask;
    return at;
  }

  void Grow() {
    std::vector<Place> old(2 * places_.size(), Place{});
    old.swap(places_);
    ++bits_;
    for (const Place& place : old) {
      if (place.slot >= 0) places_[PlaceOf(place.id)] = place;
    }
  }

  std::vector<Place> places_;
  int bits_ = 4;  // of the number of places
  int64_t size_ = 0;
};

}  // namespace slipstream

#endif  // SLIPSTREAM_KERNELS_SLOT_MAP_H_
