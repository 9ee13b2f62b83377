//! One pool of threads for all kernels.
//!
//! Work is split into tasks whose number and meaning never depend on the number of threads; which thread
//! runs a task does not matter to the result. A parallel loop inside a task, or while another caller has
//! the pool, runs in place, so there is never more than one thread per core.

#![expect(unsafe_code, reason = "workers borrow the caller's closure; the caller waits until they are done")]

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::*};
use std::sync::{Arc, Condvar, Mutex, OnceLock};

/// How long an idle worker looks for work before it sleeps; about the gap between two operations.
const SPINS: usize = 20_000;

type Task<'a> = &'a (dyn Fn(usize) + Sync);

struct Job {
    task: *const (dyn Fn(usize) + Sync),
    tasks: usize,
    next: AtomicUsize,
    running: AtomicUsize,
    panicked: AtomicBool,
}
// SAFETY: `task` is Sync and outlives the job: `for_each` returns only when `running` is zero.
unsafe impl Send for Job {}
// SAFETY: as above.
unsafe impl Sync for Job {}

struct Shared {
    /// Counts jobs; workers compare it with the last one they served.
    generation: AtomicUsize,
    job: Mutex<Option<Arc<Job>>>,
    wake: Condvar,
}

struct Pool {
    shared: Arc<Shared>,
    /// Held by the caller whose job runs.
    busy: Mutex<()>,
    workers: AtomicUsize,
}

static LIMIT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Number of threads that a parallel loop uses: one per core unless [`set_threads`] said otherwise.
pub fn threads() -> usize {
    // The system looks into several files to answer; kernels ask thousands of times a second.
    static CORES: OnceLock<usize> = OnceLock::new();
    match LIMIT.load(Relaxed) {
        0 => *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, |n| n.get())),
        limit => limit,
    }
}

/// Limits parallel loops to `count` threads (the caller included); 0 means one per core.
pub fn set_threads(count: usize) {
    LIMIT.store(count, Relaxed);
}

/// Calls `task(0)` … `task(tasks - 1)`, each once, on any thread and in any order.
pub fn for_each(tasks: usize, task: Task) {
    let threads = threads().min(tasks);
    if threads <= 1 || INSIDE.get() {
        return (0..tasks).for_each(task);
    }
    let pool = pool();
    let Ok(_busy) = pool.busy.try_lock() else {
        return (0..tasks).for_each(task);
    };
    pool.run(tasks, threads - 1, task);
}

/// Splits `0..len` into runs of `grain` (the last may be shorter) and calls `task(start, end)` for each.
pub fn for_each_range(len: usize, grain: usize, task: impl Fn(usize, usize) + Sync) {
    let grain = grain.max(1);
    for_each(len.div_ceil(grain), &|i| task(i * grain, ((i + 1) * grain).min(len)));
}

fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| Pool {
        shared: Arc::new(Shared { generation: AtomicUsize::new(0), job: Mutex::new(None), wake: Condvar::new() }),
        busy: Mutex::new(()),
        workers: AtomicUsize::new(0),
    })
}

impl Pool {
    fn run(&self, tasks: usize, helpers: usize, task: Task) {
        self.grow(helpers);
        let task: *const (dyn Fn(usize) + Sync + '_) = task;
        // SAFETY: only the lifetime changes; the job is over before this function returns.
        let task =
            unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync)>(task) };
        let job = Arc::new(Job {
            task,
            tasks,
            next: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
        });
        self.shared.publish(job.clone());
        INSIDE.set(true);
        let outcome = catch_unwind(AssertUnwindSafe(|| job.work()));
        INSIDE.set(false);
        // No worker may join from here on; those that did are waited for.
        *self.shared.job.lock().expect("workers do not panic") = None;
        for spin in 0.. {
            if job.running.load(Acquire) == 0 {
                break;
            }
            // On an oversubscribed machine the last worker may need this core.
            if spin % 4096 == 4095 { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
        assert!(!job.panicked.load(Relaxed), "a parallel task panicked; its message is above");
    }

    /// Starts threads until there are `count`; they are never stopped, only idle.
    fn grow(&self, count: usize) {
        while self.workers.load(Relaxed) < count {
            let shared = self.shared.clone();
            let index = self.workers.fetch_add(1, Relaxed);
            let name = format!("kernel-{index}");
            let started = std::thread::Builder::new().name(name).spawn(move || shared.serve(index));
            if started.is_err() {
                return; // Fewer threads are slower, not wrong.
            }
        }
    }
}

impl Shared {
    fn publish(&self, job: Arc<Job>) {
        let mut slot = self.job.lock().expect("workers do not panic");
        *slot = Some(job);
        // Under the lock, so that a worker about to sleep cannot miss it.
        self.generation.fetch_add(1, Release);
        self.wake.notify_all();
    }

    fn serve(&self, index: usize) {
        INSIDE.set(true);
        let mut served = 0;
        loop {
            let job = self.wait_for_job(&mut served);
            if let Some(job) = job.filter(|_| index + 1 < threads()) {
                job.running.fetch_add(1, AcqRel);
                // The caller may have closed the job meanwhile; then its closure must not be touched.
                let open =
                    self.job.lock().expect("workers do not panic").as_ref().is_some_and(|now| Arc::ptr_eq(now, &job));
                if open && catch_unwind(AssertUnwindSafe(|| job.work())).is_err() {
                    job.panicked.store(true, Relaxed);
                    job.next.store(job.tasks, Relaxed);
                }
                job.running.fetch_sub(1, AcqRel);
            }
        }
    }

    fn wait_for_job(&self, served: &mut usize) -> Option<Arc<Job>> {
        for _ in 0..SPINS {
            if self.generation.load(Acquire) != *served {
                break;
            }
            std::hint::spin_loop();
        }
        let mut job = self.job.lock().expect("workers do not panic");
        while self.generation.load(Acquire) == *served {
            job = self.wake.wait(job).expect("workers do not panic");
        }
        *served = self.generation.load(Acquire);
        job.clone()
    }
}

impl Job {
    fn work(&self) {
        // SAFETY: the caller of `for_each` keeps the closure alive until `running` is zero.
        let task = unsafe { &*self.task };
        loop {
            let index = self.next.fetch_add(1, Relaxed);
            if index >= self.tasks {
                return;
            }
            task(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_also_nested_and_from_many_callers() {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for tasks in [0, 1, 2, 3, 100] {
                        let counts: Vec<_> = (0..tasks * 3).map(|_| AtomicUsize::new(0)).collect();
                        for_each(tasks, &|i| {
                            for_each(3, &|j| {
                                counts[i * 3 + j].fetch_add(1, Relaxed);
                            })
                        });
                        assert!(counts.iter().all(|count| count.load(Relaxed) == 1));
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller() {
        let result = catch_unwind(|| for_each(64, &|i| assert!(i != 63, "task 63 fails on purpose")));
        assert!(result.is_err());
        for_each(8, &|_| ());
    }
}
