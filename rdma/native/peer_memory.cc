#include "peer_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace tartan {

namespace {
size_t mapped_bytes(size_t size) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return (size + page - 1) / page * page;
}
}  // namespace

const PeerRegion* PeerMemory::find(uint32_t rkey) const {
  for (const PeerRegion& region : regions_) {
    if (region.rkey == rkey) return &region;
  }
  return nullptr;
}

bool PeerMemory::add(uint32_t rkey, int memfd, uint32_t size) {
  struct stat status;
  void* base = MAP_FAILED;
  const bool sealed = (fcntl(memfd, F_GET_SEALS) & F_SEAL_SHRINK) != 0 && fcntl(memfd, F_GET_SEALS) != -1;
  if (sealed && size > 0 && fstat(memfd, &status) == 0 && mapped_bytes(size) <= static_cast<size_t>(status.st_size)) {
    base = mmap(nullptr, mapped_bytes(size), PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
  }
  if (base == MAP_FAILED) return false;
  drop(rkey);
  madvise(base, mapped_bytes(size), MADV_DONTFORK);
  regions_.push_back({rkey, static_cast<uint8_t*>(base), size});
  return true;
}

void PeerMemory::drop(uint32_t rkey) {
  for (size_t i = 0; i < regions_.size(); i++) {
    if (regions_[i].rkey != rkey) continue;
    munmap(regions_[i].base, mapped_bytes(regions_[i].size));
    regions_[i] = regions_.back();
    regions_.pop_back();
    return;
  }
}

void PeerMemory::clear() {
  for (const PeerRegion& region : regions_) munmap(region.base, mapped_bytes(region.size));
  regions_.clear();
}

}  // namespace tartan
