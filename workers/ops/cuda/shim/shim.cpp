// The scheduler behind shim.hpp, and the entry point that Python calls: es_shim_launch.
#include "shim.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace shim {

// ---- switching between fibers --------------------------------------------------------------------------------

#if defined(__x86_64__)
extern "C" void es_shim_switch(void** save, void* load);
asm(R"(
.text
.type es_shim_switch, @function
es_shim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size es_shim_switch, . - es_shim_switch
)");

struct Context {
    void* pointer = nullptr;
    void start(char* stack, size_t bytes, void (*entry)()) {
        void** top = reinterpret_cast<void**>(stack + bytes);
        *--top = nullptr;  // where a return address would be, which also aligns the frame of `entry`
        *--top = reinterpret_cast<void*>(entry);
        for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
        pointer = top;
    }
    void switch_to(Context& other) { es_shim_switch(&pointer, other.pointer); }
};
#else
struct Context {
    ucontext_t context;
    void start(char* stack, size_t bytes, void (*entry)()) {
        getcontext(&context);
        context.uc_stack.ss_sp = stack, context.uc_stack.ss_size = bytes, context.uc_link = nullptr;
        makecontext(&context, entry, 0);
    }
    void switch_to(Context& other) { swapcontext(&context, &other.context); }
};
#endif

// ---- one block -----------------------------------------------------------------------------------------------

constexpr size_t kStackBytes = 256 << 10;  // mapped; only what a kernel touches becomes resident

enum class Status { ready, in_warp, in_block, done };

struct Thread {
    Context context;
    Index index;
    Status status;
    Site site;
    const void* in;
    void* out;
};

using Kernel = void (*)(void** arguments);

struct Block {
    std::vector<Thread> threads;
    std::vector<unsigned> lanes, warps;  // the order in which they run
    char* stacks;
    std::unique_ptr<unsigned char[]> shared_memory;
    size_t shared_bytes;
    Context scheduler;
    const void* scheduler_stack = nullptr;
    size_t scheduler_bytes = 0;
    Kernel kernel;
    void** arguments;
    unsigned waiting = 0;  // threads in the block barrier
    std::string error;

    Block(unsigned size, size_t shared, unsigned order, Kernel run_kernel, void** kernel_arguments);
    ~Block() { munmap(stacks, threads.size() * kStackBytes); }
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;

    char* stack_of(const Thread& thread) { return stacks + size_t(&thread - threads.data()) * kStackBytes; }
    void run();
    bool run_warp(unsigned warp);
    void resume(Thread& thread);
    void arrive_in_block();
    void stuck();
};

thread_local Thread* current;
thread_local Index block_index, block_size, grid_size;
static thread_local Block* block;

static void permute(std::vector<unsigned>& places, unsigned order) {
    for (unsigned i = 0; i < places.size(); ++i) places[i] = i;
    if (order == 1) std::reverse(places.begin(), places.end());
    uint64_t random = order;
    for (size_t i = places.size(); order > 1 && i > 1; --i) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        std::swap(places[i - 1], places[(random >> 33) % i]);
    }
}

Block::Block(unsigned size, size_t shared, unsigned order, Kernel run_kernel, void** kernel_arguments)
    : threads(size),
      lanes(32),
      warps((size + 31) / 32),
      shared_bytes(shared),
      kernel(run_kernel),
      arguments(kernel_arguments) {
    void* memory =
        mmap(nullptr, size * kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    stacks = static_cast<char*>(memory);
    permute(lanes, order), permute(warps, order);
}

// Gives the thread back to the scheduler until what it waits for has happened.
static void wait() {
    Thread* self = current;
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(self->status == Status::done ? nullptr : &fake, block->scheduler_stack,
                                   block->scheduler_bytes);
#endif
    self->context.switch_to(block->scheduler);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, &block->scheduler_stack, &block->scheduler_bytes);
#endif
}

static void entry() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &block->scheduler_stack, &block->scheduler_bytes);
#endif
    block->kernel(block->arguments);
    current->status = Status::done;
    wait();
}

void Block::resume(Thread& thread) {
    current = &thread;
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, stack_of(thread), kStackBytes);
#endif
    scheduler.switch_to(thread.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

static std::string describe(const Thread& thread) {
    if (thread.status == Status::done) return "thread " + std::to_string(thread.index.x) + " at the end";
    return "thread " + std::to_string(thread.index.x) + " at " + thread.site.what + " (" + thread.site.file + ":" +
           std::to_string(thread.site.line) + ")";
}

static bool same(const Site& a, const Site& b) {
    return a.line == b.line && !strcmp(a.what, b.what) && !strcmp(a.file, b.file);
}

// Runs the lanes of a warp until all of them wait for the block or are done; false if it could do nothing.
bool Block::run_warp(unsigned warp) {
    bool any = false;
    for (bool again = true; again && error.empty();) {
        again = false;
        for (unsigned lane : lanes) {
            if (warp * 32 + lane >= threads.size()) continue;
            Thread& thread = threads[warp * 32 + lane];
            if (thread.status != Status::ready) continue;
            resume(thread);
            if (!error.empty()) return true;
            any = again = true;
        }
    }
    return any;
}

void Block::stuck() {
    const Thread* first = nullptr;
    for (const Thread& thread : threads) {
        if (thread.status == Status::done) continue;
        if (!first) first = &thread;
    }
    for (const Thread& thread : threads)
        if (first && (thread.status == Status::done || !same(thread.site, first->site))) {
            error = "divergence: " + describe(*first) + ", " + describe(thread);
            return;
        }
    if (first) error = "divergence: " + describe(*first) + " waits for lanes that its warp does not have";
}

void Block::run() {
    block = this;
    waiting = 0;
    shared_memory = std::make_unique<unsigned char[]>(shared_bytes);
    memset(shared_memory.get(), 0xA5, shared_bytes);  // what a kernel reads unwritten should show
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stacks, threads.size() * kStackBytes);
#endif
    for (unsigned i = 0; i < threads.size(); ++i) {
        threads[i].index = {i, 0, 0}, threads[i].status = Status::ready;
        threads[i].context.start(stack_of(threads[i]), kStackBytes, entry);
    }
    for (bool any = true; any && error.empty();) {
        any = false;
        for (unsigned warp : warps) any |= error.empty() && run_warp(warp);
    }
    if (error.empty()) stuck();
}

void Block::arrive_in_block() {
    if (++waiting < threads.size()) return;
    for (Thread& thread : threads) {
        if (!same(thread.site, current->site)) {
            error = "divergence: " + describe(*current) + ", " + describe(thread);
            return;
        }
        thread.status = Status::ready;
    }
    waiting = 0;
}

// ---- what kernels call -----------------------------------------------------------------------------------------

const Index& thread_index() { return current->index; }
unsigned char* shared() { return block->shared_memory.get(); }

void check_shared(long long used) {
    if (used == static_cast<long long>(block->shared_bytes)) return;
    block->error =
        "shared memory: the kernel carves " + std::to_string(used) + " bytes of " + std::to_string(block->shared_bytes);
    wait();
}

void touch(const void*) {}

void barrier(Site site) {
    current->site = site, current->status = Status::in_block;
    block->arrive_in_block();
    wait();
}

// The last lane of a warp to arrive computes for all.
void exchange(Site site, const void* in, void* out, Exchange compute) {
    Thread& self = *current;
    self.site = site, self.in = in, self.out = out, self.status = Status::in_warp;
    const size_t first = size_t(&self - block->threads.data()) / 32 * 32;
    const void* ins[32];
    void* outs[32];
    for (size_t lane = 0; lane < 32; ++lane) {
        if (first + lane >= block->threads.size()) return wait();
        Thread& other = block->threads[first + lane];
        if (other.status != Status::in_warp) return wait();
        if (!same(other.site, site)) {
            block->error = "divergence: " + describe(self) + ", " + describe(other);
            return wait();
        }
        ins[lane] = other.in, outs[lane] = other.out;
    }
    compute(ins, outs);
    for (size_t lane = 0; lane < 32; ++lane) block->threads[first + lane].status = Status::ready;
}

// The fragments of mma.m16n8k32, PTX ISA "Matrix fragments for mma.m16n8k32": lane = 4 g + t.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
__attribute__((target_clones("avx2", "default"), optimize("O3")))
#endif
static void multiply(const short (&a)[16][32], const short (&b)[8][32], int (&c)[16][8]) {
    for (int row = 0; row < 16; ++row)
        for (int column = 0; column < 8; ++column) {
            int sum = c[row][column];
            for (int k = 0; k < 32; ++k) sum += a[row][k] * b[column][k];
            c[row][column] = sum;
        }
}

void mma_exchange(const void* const (&in)[32], void* const (&out)[32]) {
    short a[16][32], b[8][32];
    int c[16][8];
    for (int lane = 0; lane < 32; ++lane) {
        const MmaIn& from = *static_cast<const MmaIn*>(in[lane]);
        const int g = lane / 4, t = lane % 4;
        for (int part = 0; part < 4; ++part)
            for (int j = 0; j < 4; ++j)
                a[g + part % 2 * 8][part / 2 * 16 + 4 * t + j] = short(low_bits(from.a[part], j));
        for (int part = 0; part < 2; ++part)
            for (int j = 0; j < 4; ++j) b[g][part * 16 + 4 * t + j] = short(low_bits(from.b[part], j));
        for (int part = 0; part < 4; ++part) c[g + part / 2 * 8][2 * t + part % 2] = from.c[part];
    }
    multiply(a, b, c);
    for (int lane = 0; lane < 32; ++lane)
        for (int part = 0; part < 4; ++part)
            static_cast<int*>(out[lane])[part] = c[lane / 4 + part / 2 * 8][lane % 4 * 2 + part % 2];
}

void matrix_exchange(const void* const (&in)[32], void* const (&out)[32]) {
    for (int part = 0; part < 4; ++part)
        for (int row = 0; row < 8; ++row) {
            const char* from = static_cast<const char*>(*static_cast<const void* const*>(in[8 * part + row]));
            if (reinterpret_cast<uintptr_t>(from) % 16) {
                block->error = "load_matrix: a row that is not aligned to 16 bytes";
                return;
            }
            for (int t = 0; t < 4; ++t)
                static_cast<unsigned*>(out[4 * row + t])[part] = reinterpret_cast<const unsigned*>(from)[t];
        }
}

void sum_exchange(const void* const (&in)[32], void* const (&out)[32]) {
    unsigned sum = 0;
    for (const void* value : in) sum += *static_cast<const unsigned*>(value);
    for (void* to : out) *static_cast<unsigned*>(to) = sum;
}

void ballot_exchange(const void* const (&in)[32], void* const (&out)[32]) {
    unsigned mask = 0;
    for (int lane = 0; lane < 32; ++lane) mask |= unsigned(*static_cast<const bool*>(in[lane])) << lane;
    for (void* to : out) *static_cast<unsigned*>(to) = mask;
}

void no_exchange(const void* const (&)[32], void* const (&)[32]) {}

}  // namespace shim

// ---- the launch ------------------------------------------------------------------------------------------------

// Generated behind the kernels' text (emulated.py): their names and functions, ended by a null name.
struct ShimKernel {
    const char* name;
    shim::Kernel run;
};
extern "C" const ShimKernel es_shim_kernels[];

// Runs the kernel of that name over a grid, `os_threads` blocks at a time. Returns 0, or 1 with a message.
extern "C" int es_shim_launch(const char* name, const unsigned* grid, unsigned block_threads, size_t shared_bytes,
                              void** arguments, unsigned os_threads, unsigned order, char* message,
                              size_t message_bytes) {
    const ShimKernel* kernel = es_shim_kernels;
    while (kernel->name && strcmp(kernel->name, name)) ++kernel;
    std::string error = kernel->name ? "" : "no such kernel";
    std::atomic<uint64_t> next{0};
    std::mutex lock;
    const uint64_t blocks = uint64_t(grid[0]) * grid[1];
    const auto work = [&] {
        shim::Block block(block_threads, shared_bytes, order, kernel->run, arguments);
        shim::block_size = {block_threads, 1, 1}, shim::grid_size = {grid[0], grid[1], 1};
        for (uint64_t at; (at = next++) < blocks && block.error.empty();) {
            const uint64_t place = order == 1 ? blocks - 1 - at : at;
            shim::block_index = {unsigned(place % grid[0]), unsigned(place / grid[0]), 0};
            block.run();
        }
        const std::lock_guard<std::mutex> held(lock);
        if (error.empty()) error = block.error;
    };
    if (error.empty()) {
        std::vector<std::thread> helpers;
        for (uint64_t i = 1; i < os_threads && i < blocks; ++i) helpers.emplace_back(work);
        work();
        for (std::thread& helper : helpers) helper.join();
    }
    snprintf(message, message_bytes, "%s", error.c_str());
    return !error.empty();
}
