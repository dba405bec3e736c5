// Routing logs: which experts a router chose for which tokens, before any drop, in a form that
// other systems can write, so that `openmoe analyze --log` studies any mixture-of-experts model.
// Readable and writable by h5py. HDF5 (.h5, .hdf5), root attributes:
//
//   format "openmoe-routing-log", format_version 1
//   num_experts, top_k        E, K: integers; E at most 8192
//   sequence_length           optional; T, at least the longest sequence, which is the default, and
//                             at most 2^30
//   name, step                optional; what is shown of the model, and its training step
//
// and datasets, N tokens in S sequences:
//
//   token_ids         (N) integers
//   sequence_offsets  (S + 1) integers: sequence s is the tokens [offsets[s], offsets[s + 1])
//   sequence_sources  (S) integers: index into sources
//   sources           strings
//   document_ids      (N) integers, optional: index into the two below; a sequence is a document
//                     where this is missing
//   document_sources  (documents) integers, document_tags (documents) strings: with document_ids
//   pieces            strings, optional: text of token id i
//   layers/<i>/choices  (N, K) integers: experts of MoE layer i of the network, by falling
//                       probability
//   layers/<i>/gates    (N, K) floats, optional: their combine weights
//   favourites/ids      (I) rising integers and favourites/experts (layers, I) integers, optional:
//                       of some token ids the favourite expert when last seen often enough, -1: not
//                       yet; training writes them and goes on from them
//
// Or JSON Lines (any other ending; .gz and .zst are read too). The first line is an object with the
// attributes above and "layers", a list of numbers of layers, and optionally "pieces". Each further
// line is a sequence, which is a document: {"source": "c4", "tag": "", "tokens": [5, 17, ...],
// "choices": [[[3, 1], [0, 2], ...], ...]} with choices[layer][token] a list of K experts. "source"
// and "tag" may be missing.
//
// Groups of a capacity rule are cut from the sequences of one source, in their order; sequences of
// other sources may stand between them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/routing/trace.h"

namespace openmoe {

// Favourite experts of some token ids, by layer: what a run under way remembers of its past.
struct FavouriteExperts {
  std::vector<std::int32_t> ids;                   // (I), rising
  std::vector<std::vector<std::int32_t>> experts;  // (layers, I); -1: none yet
};

struct RoutingLog {
  RoutingTrace trace;
  std::string name;                 // "": none given
  std::int64_t step = -1;           // -1: none given
  std::vector<std::string> pieces;  // empty: none given
  FavouriteExperts favourites;      // of HDF5; empty: none given
};

// Throws UserError, naming file and place, for anything that is not such a log.
RoutingLog read_routing_log(const std::string& path);

// HDF5, compressed; the file is whole or not there. Throws UserError or RuntimeFault when it cannot
// be written.
void write_routing_log(const std::string& path, const RoutingLog& log);

}  // namespace openmoe
