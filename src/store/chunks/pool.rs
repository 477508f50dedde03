//! The sealer pool: a fixed number of threads, one bounded queue.

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, bounded};

type Job = Box<dyn FnOnce() + Send>;

/// Jobs that may wait for each thread before a submitter waits.
const QUEUE_PER_THREAD: usize = 32;

/// Threads that run jobs. Dropping the pool runs what is queued and joins them.
pub struct Pool {
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool of `threads` threads.
    ///
    /// # Errors
    /// When the operating system gives no more threads.
    pub fn new(name: &str, threads: usize) -> std::io::Result<Pool> {
        let threads = threads.max(1);
        let (jobs, queue) = bounded::<Job>(threads * QUEUE_PER_THREAD);
        let threads = (0..threads)
            .map(|i| {
                let queue = queue.clone();
                std::thread::Builder::new().name(format!("{name}-{i}")).spawn(move || {
                    for job in queue {
                        job();
                    }
                })
            })
            .collect::<std::io::Result<_>>()?;
        Ok(Pool { jobs: Some(jobs), threads })
    }

    /// Runs `job` on some thread; waits while the queue is full.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        if let Some(jobs) = &self.jobs {
            // The threads outlive the sender, so that sending cannot fail.
            let _ = jobs.send(Box::new(job));
        }
    }

    /// Applies `work` to the numbers `0..count` on all threads and returns the results in order.
    /// Must not be called from a job of the same pool.
    pub fn map<T: Send + 'static>(
        &self,
        count: usize,
        work: impl Fn(usize) -> T + Send + Sync + 'static,
    ) -> Vec<T> {
        if count <= 1 {
            return (0..count).map(work).collect();
        }
        let work = Arc::new(work);
        let (done, results) = bounded(count);
        for i in 0..count {
            let (work, done) = (work.clone(), done.clone());
            self.run(move || {
                let _ = done.send((i, work(i)));
            });
        }
        drop(done);
        let mut results: Vec<(usize, T)> = results.iter().collect();
        results.sort_by_key(|(i, _)| *i);
        results.into_iter().map(|(_, r)| r).collect()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_all_threads_end() {
        let pool = Pool::new("test", 3).unwrap();
        assert_eq!(pool.map(1000, |i| i * 2), (0..1000).map(|i| i * 2).collect::<Vec<_>>());
        assert_eq!(pool.map(0, |i| i), Vec::<usize>::new());
    }
}
