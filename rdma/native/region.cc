#include "region.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <new>

namespace tartan {

Region* Region::allocate(size_t bytes, uint32_t access, uint32_t lkey, uint32_t rkey, std::string& why) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t mapped = (bytes + page - 1) / page * page;
  int memfd = memfd_create("tartan-region", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (memfd < 0) {
    why = std::string("memfd_create: ") + strerror(errno);
    return nullptr;
  }
  void* base = MAP_FAILED;
  if (ftruncate(memfd, static_cast<off_t>(mapped)) < 0) {
    why = std::string("ftruncate: ") + strerror(errno);
  } else if (fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
    // Without the seals a peer could shrink the file and have us killed by SIGBUS.
    why = std::string("cannot seal: ") + strerror(errno);
  } else {
    base = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    if (base == MAP_FAILED) why = std::string("mmap: ") + strerror(errno);
  }
  if (base == MAP_FAILED) {
    close(memfd);
    return nullptr;
  }
  madvise(base, mapped, MADV_HUGEPAGE);  // a hint: needs shmem_enabled=advise
  madvise(base, mapped, MADV_DONTFORK);  // a forked child must not keep revoked memory alive
  Region* region = new (std::nothrow) Region(static_cast<uint8_t*>(base), bytes, access, lkey, rkey, memfd);
  if (!region) {
    why = "no memory";
    munmap(base, mapped);
    close(memfd);
  }
  return region;
}

Region::~Region() {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  munmap(base, (size + page - 1) / page * page);
  close(memfd);
}

void RegionTable::add(Region* region) {
  by_lkey_[region->lkey] = region;
  by_rkey_[region->rkey] = region;
}

void RegionTable::revoke(Region* region) {
  region->revoked = true;
  by_lkey_.erase(region->lkey);
  by_rkey_.erase(region->rkey);
}

}  // namespace tartan
