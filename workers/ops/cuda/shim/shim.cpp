// The scheduler behind shim.hpp, and the entry point that Python calls: es_shim_launch.
#include "shim.hpp"

#include <sys/mman.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace shim {
namespace {

constexpr size_t kStackBytes = 256 << 10;  // mapped, not touched: only what a kernel uses becomes resident

// ---- switching ---------------------------------------------------------------------------------------------

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
        *--top = nullptr;  // what `entry` would return to; also aligns its frame
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

// ---- one block ---------------------------------------------------------------------------------------------

enum class Status { ready, in_warp, in_block, done };

}  // namespace

struct Thread {
    Context context;
    Index index;
    Status status;
    Site site;
    const void* in;
    void* out;
};

thread_local Thread* current;
thread_local Index block_index, block_size, grid_size;

namespace {

std::atomic<unsigned> order{0};  // 0: ascending, 1: descending, else a seed

struct Block {
    std::vector<Thread> threads;
    char* stacks;
    unsigned char* shared_memory = nullptr;
    size_t shared_bytes = 0;
    Context scheduler;
    void (*kernel)(void** arguments);
    void** arguments;
    int in_block = 0;
    std::string error;

    explicit Block(unsigned size) : threads(size) {
        const size_t bytes = size * kStackBytes;
        void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) abort();
        stacks = static_cast<char*>(memory);
    }
    ~Block() { munmap(stacks, threads.size() * kStackBytes); }
    Block(const Block&) = delete;

    char* stack_of(const Thread& thread) { return stacks + size_t(&thread - threads.data()) * kStackBytes; }
    size_t warp_of(const Thread& thread) const { return size_t(&thread - threads.data()) / 32; }
    void run();
    void pass();
    void resume(Thread& thread);
    void join_warp();
    void join_block();
    void differ(const Thread& a, const Thread& b);
    void stuck();
};

thread_local Block* block;

void wait() {
    Thread* self = current;
#if defined(__SANITIZE_ADDRESS__)
    void* fake;
    static thread_local const void* bottom;
    static thread_local size_t size;
    __sanitizer_start_switch_fiber(&fake, nullptr, 0);
    self->context.switch_to(block->scheduler);
    __sanitizer_finish_switch_fiber(fake, &bottom, &size);
#else
    self->context.switch_to(block->scheduler);
#endif
    current = self;
}

void entry() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
    block->kernel(block->arguments);
    current->status = Status::done;
    wait();
}

std::string describe(const Thread& thread) {
    char text[400];
    snprintf(text, sizeof text, "thread %u at %s (%s:%d)", thread.index.x, thread.site.what, thread.site.file, thread.site.line);
    return text;
}

bool same(const Site& a, const Site& b) { return a.line == b.line && !strcmp(a.what, b.what) && !strcmp(a.file, b.file); }

void Block::differ(const Thread& a, const Thread& b) { error = "divergence: " + describe(a) + ", " + describe(b); }

// The last lane of a warp to arrive computes for all.
void Block::join_warp() {
    const size_t first = warp_of(*current) * 32;
    const void* in[32];
    void* out[32];
    for (size_t lane = 0; lane < 32; ++lane) {
        const Thread& other = threads[first + lane];
        if (other.status != Status::in_warp) return;
        if (!same(other.site, current->site)) return differ(*current, other);
        in[lane] = other.in, out[lane] = other.out;
    }
    reinterpret_cast<Exchange>(current->context.pointer_of_exchange)(in, out);
}

}  // namespace
}  // namespace shim
