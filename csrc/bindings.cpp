// SPDX-FileCopyrightText: The pyallreduce authors
// SPDX-License-Identifier: Apache-2.0
//
// The module pyallreduce._C: integers and bytes only, no torch. Everything that may wait gives up
// the GIL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "host/host_rank.h"
#include "host/shared_memory.h"
#include "host/watchdog.h"
#include "layout.h"
#include "portion.h"
#include "rank.h"

#if PYALLREDUCE_WITH_CUDA
#include "cuda/cuda_rank.h"
#include "cuda/device_memory.h"
#include "cuda/error.h"
#endif

namespace py = pybind11;

namespace pyallreduce {
namespace {

using Unlocked = py::call_guard<py::gil_scoped_release>;

py::tuple words(const Words& v) { return py::make_tuple(v.w[0], v.w[1], v.w[2], v.w[3]); }

void check_range(const host::SharedMemory& memory, uint64_t offset, uint64_t bytes) {
  if (memory.address() == nullptr) throw Closed("this shared memory is closed");
  if (offset > memory.bytes() || bytes > memory.bytes() - offset) {
    throw std::out_of_range(std::to_string(bytes) + " bytes at " + std::to_string(offset) + " of " +
                            std::to_string(memory.bytes()));
  }
}

void bind_layout(py::module_& m) {
  py::class_<Layout>(m, "Layout")
      .def(py::init(&make_layout), py::arg("world"), py::arg("slab_bytes"))
      .def_readonly("world", &Layout::world)
      .def_readonly("bytes", &Layout::bytes)
      .def_readonly("apart", &Layout::apart)
      .def_property_readonly("room_apart", &room_apart)
      .def_readonly("control", &Layout::control)
      .def_readonly("blocks", &Layout::blocks)
      .def_readonly("one_shot_tile", &Layout::one_shot_tile)
      .def_readonly("two_shot_tile", &Layout::two_shot_tile)
      .def("one_shot_capacity", &one_shot_capacity, py::arg("blocks"))
      .def("two_shot_capacity", &two_shot_capacity, py::arg("blocks"))
      .def(
          "next_portion",
          [](const Layout& layout, uint32_t algorithm, uint32_t blocks, uint32_t lanes,
             uint64_t bytes) {
            const Plan plan{static_cast<Algorithm>(algorithm), blocks, lanes};
            const Portion portion = next_portion(layout, plan, bytes);
            return py::make_tuple(portion.bytes, portion.laps, portion.tile);
          },
          py::arg("algorithm"), py::arg("blocks"), py::arg("lanes"), py::arg("bytes"))
      .def("regions", [](const Layout& layout) {
        py::list list;
        for (const Region& r : regions(layout)) {
          list.append(py::make_tuple(r.name, r.offset, r.bytes, r.armed));
        }
        return list;
      });
}

void bind_shared_memory(py::module_& m) {
  using host::SharedMemory;
  py::register_exception<host::SharedMemoryError>(m, "SharedMemoryError", PyExc_OSError);
  py::class_<SharedMemory>(m, "SharedMemory")
      .def(py::init<uint64_t>(), py::arg("bytes"))
      .def_static(
          "open",
          [](int64_t pid, uint64_t start_time, int64_t fd, uint64_t inode, uint64_t bytes) {
            return std::make_unique<SharedMemory>(host::Offer{pid, start_time, fd, inode, bytes});
          },
          py::arg("pid"), py::arg("start_time"), py::arg("fd"), py::arg("inode"), py::arg("bytes"))
      .def_property_readonly(
          "address", [](const SharedMemory& s) { return reinterpret_cast<uint64_t>(s.address()); })
      .def_property_readonly("bytes", &SharedMemory::bytes)
      .def("offer",
           [](const SharedMemory& s) {
             const host::Offer o = s.offer();
             return py::make_tuple(o.pid, o.start_time, o.fd, o.inode, o.bytes);
           })
      .def(
          "fill",
          [](SharedMemory& s, uint64_t offset, uint64_t bytes, int value) {
            check_range(s, offset, bytes);
            std::memset(s.address() + offset, value, bytes);
          },
          py::arg("offset"), py::arg("bytes"), py::arg("value"))
      .def(
          "write",
          [](SharedMemory& s, uint64_t offset, const std::string& data) {
            check_range(s, offset, data.size());
            s.write(offset, data);
          },
          py::arg("offset"), py::arg("data"))
      .def(
          "read",
          [](const SharedMemory& s, uint64_t offset, uint64_t bytes) {
            check_range(s, offset, bytes);
            return py::bytes(s.address() + offset, bytes);
          },
          py::arg("offset"), py::arg("bytes"))
      .def("close", &SharedMemory::close);
}

// With the GIL, as close() has it: no other thread unmaps the page meanwhile.
Record& record_of(const host::SharedMemory& page) {
  check_range(page, 0, sizeof(Record));
  return *reinterpret_cast<Record*>(page.address());
}

// What every step asks: no rank's record tells of a failure, and no peer has died. In one call, and
// without giving the GIL away, which a thread that does so may be without for milliseconds.
// Acquire, as in Rank::failed(): what a rank wrote before its state is there for whoever reads the
// record.
struct Quiet {
  py::tuple held;  // the pages' objects, which live as long
  std::vector<const host::SharedMemory*> pages;
  const host::Watchdog& watchdog;

  bool operator()() const {
    const auto clean = [](const host::SharedMemory* page) {
      return __atomic_load_n(&record_of(*page).state, __ATOMIC_ACQUIRE) == 0;
    };
    return std::all_of(pages.begin(), pages.end(), clean) && !watchdog.any_ended();
  }
};

// What all calls of one size and type share, so that one of them has little to convert.
struct Launch {
  Rank& rank;
  uint64_t elements;
  DataType dtype;
  Plan plan;

  uint32_t operator()(uint64_t in, uint64_t out, uint32_t tag, uint64_t stream) const {
    return rank.all_reduce(in, out, elements, dtype, plan, tag, stream);
  }
};

void bind_rank(py::module_& m) {
  py::class_<Launch>(m, "Launch")
      .def("__call__", &Launch::operator(), py::arg("input"), py::arg("output"), py::arg("tag"),
           py::arg("stream"), Unlocked());
  py::class_<Record>(m, "Record")
      .def_readonly("state", &Record::state)
      .def_readonly("block", &Record::block)
      .def_readonly("peer", &Record::peer)
      .def_readonly("phase", &Record::phase)
      .def_readonly("algorithm", &Record::algorithm)
      .def_readonly("epoch", &Record::epoch)
      .def_readonly("waited_ms", &Record::waited_ms)
      .def_property_readonly("ours", [](const Record& r) { return words(r.ours); })
      .def_property_readonly("theirs", [](const Record& r) { return words(r.theirs); })
      .def_readonly("launched", &Record::launched)
      .def_readonly("drained", &Record::drained)
      .def_property_readonly("absent", [](const Record& r) { return r.host.absent; })
      .def_static(
          "at", [](const host::SharedMemory& page) { return read(record_of(page)); },
          py::arg("page"));
  m.def(
      "arm_record",
      [](host::SharedMemory& page, uint32_t generation, uint32_t deadline_ms, uint32_t notice_ms) {
        arm(record_of(page), generation, deadline_ms, notice_ms);
      },
      py::arg("page"), py::arg("generation"), py::arg("deadline_ms"), py::arg("notice_ms"));
  m.def(
      "set_deadline",
      [](host::SharedMemory& page, uint32_t deadline_ms) {
        set_deadline(record_of(page), deadline_ms);
      },
      py::arg("page"), py::arg("deadline_ms"));
  m.def(
      "decode_shape",
      [](uint32_t shape) {
        const Shape s = decode_shape(shape);
        return py::make_tuple(static_cast<uint32_t>(s.dtype), static_cast<uint32_t>(s.algorithm),
                              s.tail_bytes, s.grid, s.laps, s.chunk);
      },
      py::arg("shape"));

  py::class_<Rank>(m, "Rank")
      .def(
          "launch",
          [](Rank& rank, uint64_t elements, uint32_t dtype, uint32_t algorithm, uint32_t blocks,
             uint32_t lanes) {
            const Plan plan{static_cast<Algorithm>(algorithm), blocks, lanes};
            return Launch{rank, elements, static_cast<DataType>(dtype), plan};
          },
          py::arg("elements"), py::arg("dtype"), py::arg("algorithm"), py::arg("blocks"),
          py::arg("lanes"), py::keep_alive<0, 1>())
      .def("refuse", &Rank::refuse, py::arg("code"), py::arg("stream"), Unlocked())
      .def("ping_pong", &Rank::ping_pong, py::arg("rounds"), py::arg("seed"), py::arg("stream"),
           Unlocked())
      .def(
          "edge",
          [](const Rank& rank, uint32_t peer) {
            const Edge e = rank.edge(peer);
            return py::make_tuple(e.state, e.rounds, e.nanoseconds, e.read_back != 0);
          },
          py::arg("peer"))
      .def("state", &Rank::state)
      .def("report", &Rank::report)
      .def("raise_host_stop", &Rank::raise_host_stop, py::arg("word"))
      .def("close", &Rank::close, Unlocked());
  py::class_<host::HostRank, Rank>(m, "HostRank")
      .def(py::init<uint32_t, const Layout&, const std::vector<uint64_t>&, uint64_t>(),
           py::arg("rank"), py::arg("layout"), py::arg("slabs"), py::arg("record"));
}

uint64_t address_of(const host::SharedMemory& memory) {
  return reinterpret_cast<uint64_t>(memory.address());
}

void bind_watchdog(py::module_& m) {
  using host::Watchdog;
  py::class_<Watchdog>(m, "Watchdog")
      // Its thread reads the pages: they live as long as it does.
      .def(py::init([](uint32_t rank, const host::SharedMemory& page) {
             return std::make_unique<Watchdog>(rank, address_of(page));
           }),
           py::arg("rank"), py::arg("page"), py::keep_alive<1, 3>(), Unlocked())
      .def(
          "watch",
          [](Watchdog& watchdog, uint32_t rank, int64_t pid, const host::SharedMemory& page) {
            watchdog.watch(host::Peer{rank, pid, address_of(page)});
          },
          py::arg("rank"), py::arg("pid"), py::arg("page"), py::keep_alive<1, 4>(), Unlocked())
      .def("ended", &Watchdog::ended, Unlocked())
      .def("close", &Watchdog::close, Unlocked());
  py::class_<Quiet>(m, "Quiet")
      .def(py::init([](const py::iterable& pages, const Watchdog& watchdog) {
             Quiet quiet{py::tuple(pages), {}, watchdog};
             for (const py::handle page : quiet.held) {
               quiet.pages.push_back(&page.cast<const host::SharedMemory&>());
             }
             return quiet;
           }),
           py::arg("pages"), py::arg("watchdog"), py::keep_alive<1, 3>())
      .def("__call__", &Quiet::operator());
}

#if PYALLREDUCE_WITH_CUDA

void bind_cuda(py::module_& m) {
  using cuda::DeviceFacts;
  using cuda::DeviceMemory;
  py::register_exception<cuda::CudaError>(m, "CudaError", PyExc_RuntimeError);
  py::class_<DeviceFacts>(m, "DeviceInfo")
      .def_readonly("uuid", &DeviceFacts::uuid)
      .def_readonly("name", &DeviceFacts::name)
      .def_readonly("pci_bus_id", &DeviceFacts::pci_bus_id)
      .def_readonly("capability", &DeviceFacts::capability)
      .def_readonly("sm_count", &DeviceFacts::sm_count)
      .def_readonly("has_kernel", &DeviceFacts::has_kernel);
  m.def("device_count", &cuda::device_count);
  m.def("driver_cuda_version", &cuda::driver_cuda_version);
  m.def("device_info", &cuda::device_facts, py::arg("device"), Unlocked());
  py::class_<DeviceMemory>(m, "DeviceMemory")
      .def(py::init<int, uint64_t, uint64_t>(), py::arg("device"), py::arg("bytes"),
           py::arg("lead") = 0, Unlocked())
      .def_static(
          "open",
          [](int device, uint64_t bytes, const std::string& handle, uint64_t lead) {
            return std::make_unique<DeviceMemory>(device, bytes, handle, lead);
          },
          py::arg("device"), py::arg("bytes"), py::arg("handle"), py::arg("lead") = 0, Unlocked())
      .def_property_readonly("address", &DeviceMemory::address)
      .def_property_readonly("bytes", &DeviceMemory::bytes)
      .def("handle", [](const DeviceMemory& d) { return py::bytes(d.handle()); })
      .def("fill", &DeviceMemory::fill, py::arg("offset"), py::arg("bytes"), py::arg("value"),
           Unlocked())
      .def("write", &DeviceMemory::write, py::arg("offset"), py::arg("data"), Unlocked())
      .def(
          "read",
          [](const DeviceMemory& d, uint64_t offset, uint64_t bytes) {
            std::string data;
            {
              const py::gil_scoped_release unlocked;
              data = d.read(offset, bytes);
            }
            return py::bytes(data);
          },
          py::arg("offset"), py::arg("bytes"))
      .def("close", &DeviceMemory::close, Unlocked());
  py::class_<cuda::CudaRank, Rank>(m, "CudaRank")
      .def(py::init<int, uint32_t, const Layout&, const std::vector<uint64_t>&, uint64_t>(),
           py::arg("device"), py::arg("rank"), py::arg("layout"), py::arg("slabs"),
           py::arg("record"), Unlocked());
}

#else

// The same names exist without CUDA: there is no device, and whoever asks for one hears why.
template <typename... Arguments>
py::object no_cuda(Arguments...) {
  throw std::runtime_error("this build of pyallreduce has no CUDA (PYALLREDUCE_CUDA)");
}

void bind_cuda(py::module_& m) {
  m.def("device_count", [] { return 0; });
  m.def("driver_cuda_version", [] { return 0; });
  m.def("device_info", &no_cuda<int>, py::arg("device"));
}

#endif

}  // namespace
}  // namespace pyallreduce

PYBIND11_MODULE(_C, m) {
  using namespace pyallreduce;
  m.doc() =
      "The compiled part of pyallreduce: shared memory, device memory, and a rank's launches.";
#if PYALLREDUCE_WITH_CUDA
  m.attr("cuda_built") = true;
  m.attr("cuda_version") = CUDART_VERSION;
  m.attr("architectures") = PYALLREDUCE_ARCHITECTURES;
#else
  m.attr("cuda_built") = false;
  m.attr("cuda_version") = 0;
  m.attr("architectures") = "";
#endif
  m.attr("MAX_RANKS") = kMaxRanks;
  m.attr("MAX_BLOCKS") = kMaxBlocks;
  m.attr("PROTOCOL_VERSION") = kProtocolVersion;
  m.attr("MAX_LANES") = kMaxLanes;
  m.def("max_lanes", &max_lanes, py::arg("world"));
  // The type that users know, so that nobody above has to translate it.
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const Closed& closed) {
      const py::object type = py::module_::import("pyallreduce.errors").attr("CommunicatorClosed");
      py::set_error(type, closed.what());
    }
  });
  bind_layout(m);
  bind_shared_memory(m);
  bind_rank(m);
  bind_watchdog(m);
  bind_cuda(m);
}
