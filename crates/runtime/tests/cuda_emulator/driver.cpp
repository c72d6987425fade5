// A libcuda.so.1 whose GPU is the emulator: the calls of the driver interface that Graftwork makes, over host memory.
//
// Stricter than a GPU: memory ends at a page that cannot be touched and begins as NaN, freed memory cannot be touched,
// copies must lie inside one allocation, a kernel is launched only where the PTX that was loaded declares it with the
// parameters that the source has, and what may not happen during a capture is refused. EMULATED_GPUS and
// EMULATED_GPU_BYTES set how many there are (1) and the memory of each (1 GiB).
#include "threads.h"

#include "common.cuh"
#include "gemm.cu"
#include "layer.cu"
#include "loss.cu"
#include "optim.cu"
#include "rows.cu"

#include <atomic>
#include <csignal>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <sys/mman.h>
#include <tuple>
#include <unistd.h>
#include <utility>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {
enum Result { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_IMAGE = 200, INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500, CAPTURE_UNSUPPORTED = 900 };

using Call = std::function<void()>;
using Bind = std::function<Call(void **)>;

// What a kernel is bound to: its arguments are copied when it is launched, as a driver does.
struct Kernel {
    Bind bind;
    std::vector<size_t> sizes;
};
template <typename... A, size_t... I> Kernel make(void (*kernel)(A...), std::index_sequence<I...>) {
    return {[kernel](void **arguments) -> Call {
                std::tuple<A...> copies(*(A *)arguments[I]...);
                return [kernel, copies] { std::apply(kernel, copies); };
            },
            {sizeof(A)...}};
}
template <typename... A> Kernel make(void (*kernel)(A...)) { return make(kernel, std::index_sequence_for<A...>()); }

const std::map<std::string, Kernel> &kernels() {
    static const std::map<std::string, Kernel> all = {
#define KERNEL(name) {#name, make(name)},
#include "kernels.inc"
#undef KERNEL
    };
    return all;
}

struct Graph {
    std::vector<Call> calls;
    bool is_global = false;
};
struct Stream {
    std::unique_ptr<Graph> capture;
};
struct Function {
    const char *name;
    const Kernel *kernel;
};
struct Module {
    std::string ptx;
    std::map<std::string, Function> functions;
};
struct Allocation {
    char *pages;
    size_t n_pages_bytes, n_bytes;
};

std::recursive_mutex lock;
std::map<u64, Allocation> allocations;
size_t used;
thread_local void *context;
const char *running = "";

size_t setting(const char *name, size_t otherwise) {
    const char *text = getenv(name);
    return text ? strtoull(text, nullptr, 10) : otherwise;
}
size_t total_bytes() { return setting("EMULATED_GPU_BYTES", (size_t)1 << 30); }
int n_devices() { return (int)setting("EMULATED_GPUS", 1); }

void outside(int, siginfo_t *info, void *) {
    fprintf(stderr, "emulator: `%s` touches %p, which is outside of every allocation\n", running, info->si_addr);
    _exit(134);
}

bool capturing(Stream *stream) { return stream && stream->capture; }
// What may not happen during a capture is refused to all threads where it is of the global mode, else to its own thread.
std::atomic<int> global_captures;
thread_local int own_captures;
bool any_capture() { return global_captures > 0 || own_captures > 0; }

bool is_inside(u64 pointer, size_t n_bytes) {
    auto next = allocations.upper_bound(pointer);
    if (next == allocations.begin()) return false;
    auto &[start, allocation] = *--next;
    return pointer - start + n_bytes <= allocation.n_bytes;
}

int allocate(u64 *pointer, size_t n_bytes) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (any_capture()) return CAPTURE_UNSUPPORTED;
    if (n_bytes == 0) return INVALID_VALUE;
    if (used + n_bytes > total_bytes()) return OUT_OF_MEMORY;
    size_t page = sysconf(_SC_PAGESIZE), room = (n_bytes + page - 1) / page * page;
    char *pages = (char *)mmap(nullptr, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) return OUT_OF_MEMORY;
    memset(pages, 0xff, room);
    mprotect(pages + room, page, PROT_NONE);
    // Allocations are aligned; what is left between the last number and the page that cannot be touched is below 16 bytes.
    u64 start = (u64)(pages + room - (n_bytes + 15) / 16 * 16);
    allocations[start] = {pages, room + page, n_bytes};
    used += n_bytes;
    *pointer = start;
    return SUCCESS;
}

int release(u64 pointer) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (any_capture()) return CAPTURE_UNSUPPORTED;
    auto found = allocations.find(pointer);
    if (found == allocations.end()) return INVALID_VALUE;
    // The pages stay reserved and cannot be touched: a pointer that is used after this is found out.
    mprotect(found->second.pages, found->second.n_pages_bytes, PROT_NONE);
    used -= found->second.n_bytes;
    allocations.erase(found);
    return SUCCESS;
}
} // namespace

// Runs or, during a capture, records something; libcublasLt's products come here too.
EXPORT int emulator_submit(void *stream, const char *name, const std::function<void()> &call) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    auto named = [name, call] {
        struct sigaction action = {};
        action.sa_sigaction = outside;
        action.sa_flags = SA_SIGINFO;
        struct sigaction before;
        sigaction(SIGSEGV, &action, &before);
        running = name;
        call();
        running = "";
        sigaction(SIGSEGV, &before, nullptr);
    };
    if (capturing((Stream *)stream))
        ((Stream *)stream)->capture->calls.push_back(named);
    else
        named();
    return SUCCESS;
}

EXPORT int cuInit(unsigned) { return n_devices() == 0 ? NO_DEVICE : SUCCESS; }
EXPORT int cuDriverGetVersion(int *version) {
    *version = 12000;
    return SUCCESS;
}
EXPORT int cuDeviceGetCount(int *count) {
    *count = n_devices();
    return SUCCESS;
}
EXPORT int cuDeviceGet(int *device, int index) {
    if (index < 0 || index >= n_devices()) return INVALID_DEVICE;
    *device = index;
    return SUCCESS;
}
EXPORT int cuDeviceGetName(char *name, int n, int) {
    snprintf(name, n, "emulated GPU");
    return SUCCESS;
}
EXPORT int cuDeviceTotalMem_v2(size_t *bytes, int) {
    *bytes = total_bytes();
    return SUCCESS;
}
EXPORT int cuDeviceGetAttribute(int *value, int attribute, int) {
    switch (attribute) {
    case 16: *value = 4; break;  // multiprocessors
    case 75: *value = 8; break;  // compute capability 8.0
    case 76: *value = 0; break;
    case 115: *value = 1; break; // memory pools
    default: *value = 0;
    }
    return SUCCESS;
}
EXPORT int cuDevicePrimaryCtxRetain(void **out, int device) {
    static char contexts[64];
    *out = &contexts[device];
    return SUCCESS;
}
EXPORT int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
EXPORT int cuCtxSetCurrent(void *to) {
    context = to;
    return SUCCESS;
}
EXPORT int cuCtxGetCurrent(void **out) {
    *out = context;
    return SUCCESS;
}
EXPORT int cuCtxSynchronize() { return any_capture() ? CAPTURE_UNSUPPORTED : SUCCESS; }
EXPORT int cuStreamCreate(void **out, unsigned) {
    if (!context) return INVALID_CONTEXT;
    *out = new Stream();
    return SUCCESS;
}
EXPORT int cuStreamDestroy_v2(void *stream) {
    delete (Stream *)stream;
    return SUCCESS;
}
EXPORT int cuStreamSynchronize(void *stream) { return capturing((Stream *)stream) ? CAPTURE_UNSUPPORTED : SUCCESS; }
EXPORT int cuMemAlloc_v2(u64 *pointer, size_t n_bytes) { return allocate(pointer, n_bytes); }
EXPORT int cuMemAllocAsync(u64 *pointer, size_t n_bytes, void *) { return allocate(pointer, n_bytes); }
EXPORT int cuMemFree_v2(u64 pointer) { return release(pointer); }
EXPORT int cuMemFreeAsync(u64 pointer, void *) { return release(pointer); }
EXPORT int cuMemGetInfo_v2(size_t *free, size_t *total) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    *total = total_bytes();
    *free = *total - used;
    return SUCCESS;
}
EXPORT int cuMemcpyHtoDAsync_v2(u64 to, const void *from, size_t n_bytes, void *stream) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    // Host memory that is not pinned cannot be part of a graph.
    if (capturing((Stream *)stream)) return CAPTURE_UNSUPPORTED;
    if (!is_inside(to, n_bytes)) return INVALID_VALUE;
    memcpy((void *)to, from, n_bytes);
    return SUCCESS;
}
EXPORT int cuMemcpyDtoHAsync_v2(void *to, u64 from, size_t n_bytes, void *stream) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (capturing((Stream *)stream)) return CAPTURE_UNSUPPORTED;
    if (!is_inside(from, n_bytes)) return INVALID_VALUE;
    memcpy(to, (void *)from, n_bytes);
    return SUCCESS;
}
EXPORT int cuMemcpyDtoDAsync_v2(u64 to, u64 from, size_t n_bytes, void *stream) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (!is_inside(from, n_bytes) || !is_inside(to, n_bytes)) return INVALID_VALUE;
    return emulator_submit(stream, "copy", [=] { memmove((void *)to, (void *)from, n_bytes); });
}
EXPORT int cuMemsetD8Async(u64 to, unsigned char value, size_t n_bytes, void *stream) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (!is_inside(to, n_bytes)) return INVALID_VALUE;
    return emulator_submit(stream, "memset", [=] { memset((void *)to, value, n_bytes); });
}

EXPORT int cuModuleLoadData(void **out, const void *image) {
    if (!context) return INVALID_CONTEXT;
    auto module = std::make_unique<Module>();
    module->ptx = (const char *)image;
    if (module->ptx.find(".version") == std::string::npos) return INVALID_IMAGE;
    *out = module.release();
    return SUCCESS;
}
EXPORT int cuModuleUnload(void *module) {
    delete (Module *)module;
    return SUCCESS;
}
EXPORT int cuModuleGetFunction(void **out, void *in, const char *name) {
    Module *module = (Module *)in;
    size_t at = module->ptx.find(std::string(".entry ") + name + "(");
    auto found = kernels().find(name);
    if (at == std::string::npos || found == kernels().end()) return NOT_FOUND;
    // The declared parameters, `.param .u64 name_param_0`, against those of the source.
    std::string declared = module->ptx.substr(at, module->ptx.find(')', at) - at);
    std::vector<size_t> sizes;
    for (size_t from = 0; (from = declared.find(".param ", from)) != std::string::npos; from++) {
        size_t bits = strtoul(declared.c_str() + declared.find_first_of("0123456789", from), nullptr, 10);
        sizes.push_back(bits / 8);
    }
    if (sizes != found->second.sizes) {
        fprintf(stderr, "emulator: the PTX of `%s` has other parameters than its source\n", name);
        return INVALID_IMAGE;
    }
    Function &function = module->functions[name];
    function = {found->first.c_str(), &found->second};
    *out = &function;
    return SUCCESS;
}
EXPORT int cuLaunchKernel(void *in, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                          unsigned, void *stream, void **arguments, void **) {
    if (!context) return INVALID_CONTEXT;
    // The limits of every GPU there is.
    if (!gx || !gy || !gz || gx > 0x7fffffff || gy > 65535 || gz > 65535 || !bx || bx * by * bz > 1024) return INVALID_VALUE;
    Function *function = (Function *)in;
    Call call = function->kernel->bind(arguments);
    const char *name = function->name;
    return emulator_submit(stream, name, [=] { emulator::run(name, {gx, gy, gz}, {bx, by, bz}, call); });
}

EXPORT int cuStreamBeginCapture_v2(void *stream, int mode) {
    if (!stream || capturing((Stream *)stream)) return INVALID_VALUE;
    auto graph = std::make_unique<Graph>();
    graph->is_global = mode == 0;
    if (graph->is_global) ++global_captures; else ++own_captures;
    ((Stream *)stream)->capture = std::move(graph);
    return SUCCESS;
}
EXPORT int cuStreamEndCapture(void *stream, void **graph) {
    if (!capturing((Stream *)stream)) return INVALID_VALUE;
    Graph *whole = ((Stream *)stream)->capture.release();
    if (whole->is_global) --global_captures; else --own_captures;
    *graph = whole;
    return SUCCESS;
}
EXPORT int cuGraphInstantiateWithFlags(void **out, void *graph, u64) {
    *out = new Graph(*(Graph *)graph);
    return SUCCESS;
}
EXPORT int cuGraphUpload(void *, void *) { return SUCCESS; }
EXPORT int cuGraphLaunch(void *graph, void *stream) {
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (capturing((Stream *)stream)) return CAPTURE_UNSUPPORTED;
    for (auto &call : ((Graph *)graph)->calls) call();
    return SUCCESS;
}
EXPORT int cuGraphExecDestroy(void *graph) {
    delete (Graph *)graph;
    return SUCCESS;
}
EXPORT int cuGraphDestroy(void *graph) {
    delete (Graph *)graph;
    return SUCCESS;
}
EXPORT int cuGetErrorName(int, const char **out) {
    *out = "CUDA_ERROR_EMULATED";
    return SUCCESS;
}
EXPORT int cuGetErrorString(int code, const char **out) {
    *out = code == OUT_OF_MEMORY ? "out of memory" : "an error of the emulated driver";
    return SUCCESS;
}
