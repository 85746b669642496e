// Completion statuses of verbs → those of records.h, and what they mean in words.
#pragma once
#include <infiniband/verbs.h>

#include <cstdint>
#include <string>

#include "../records.h"
#include "rdma_core.h"

namespace tartan::verbs {

inline uint8_t send_status(ibv_wc_status status) {
  switch (status) {
    case IBV_WC_SUCCESS:
      return SUCCESS;
    case IBV_WC_LOC_LEN_ERR:
      return LENGTH_ERROR;
    case IBV_WC_LOC_PROT_ERR:
    case IBV_WC_LOC_ACCESS_ERR:
    case IBV_WC_MW_BIND_ERR:
      return LOCAL_PROTECTION_ERROR;
    case IBV_WC_REM_ACCESS_ERR:
      return REMOTE_ACCESS_ERROR;
    case IBV_WC_REM_INV_REQ_ERR:
    case IBV_WC_REM_OP_ERR:  // the peer's receive was too short, or its queue pair failed
      return REMOTE_INVALID_REQUEST;
    case IBV_WC_RETRY_EXC_ERR:
    case IBV_WC_RNR_RETRY_EXC_ERR:
    case IBV_WC_RESP_TIMEOUT_ERR:
    case IBV_WC_REM_ABORT_ERR:
      return RETRY_EXCEEDED;
    case IBV_WC_LOC_QP_OP_ERR:
    case IBV_WC_BAD_RESP_ERR:
      return INVALID_REQUEST;
    default:  // WR_FLUSH_ERR; FATAL_ERR and GENERAL_ERR say nothing about the request
      return FLUSHED;
  }
}

// A receive fails for its own length or memory; else it was the request that failed, and the receive is flushed. What
// adapters report for a SEND that is too long differs: LOC_LEN_ERR by the specification, the other two by soft-RoCE.
inline uint8_t recv_status(ibv_wc_status status) {
  switch (status) {
    case IBV_WC_LOC_LEN_ERR:
    case IBV_WC_REM_INV_REQ_ERR:
    case IBV_WC_LOC_QP_OP_ERR:
      return LENGTH_ERROR;
    case IBV_WC_LOC_PROT_ERR:
      return LOCAL_PROTECTION_ERROR;
    default:
      return FLUSHED;
  }
}

inline std::string send_failure(ibv_wc_status status) {
  if (status == IBV_WC_WR_FLUSH_ERR) return "the connection failed";
  if (status == IBV_WC_REM_ACCESS_ERR) return "the peer refused a request: wrong key, bounds or permission";
  if (status == IBV_WC_RETRY_EXC_ERR || status == IBV_WC_RESP_TIMEOUT_ERR) return "the peer does not answer";
  return std::string("a request failed: ") + core().ibv.wc_status_str(status);
}

inline std::string recv_failure(ibv_wc_status status) {
  if (status == IBV_WC_WR_FLUSH_ERR) return "the connection failed, or a request of the peer was refused";
  if (status == IBV_WC_REM_ACCESS_ERR) return "a request of the peer was refused: wrong key, bounds or permission";
  return std::string("a request of the peer failed: ") + core().ibv.wc_status_str(status);
}

}  // namespace tartan::verbs
