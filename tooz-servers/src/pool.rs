//! Servers that are used again.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

/// Lends servers one by one: starting one takes longer than most cases. A lent server has one user, which may stop and
/// hurt it; one that cannot be made clean afterwards is dropped.
pub struct Pool<S>(Arc<Inner<S>>);

struct Inner<S> {
    free: Mutex<Vec<S>>,
    start: Box<dyn Fn() -> Result<S, String> + Send + Sync>,
    clean: Box<dyn Fn(&S) -> bool + Send + Sync>,
}

impl<S> Clone for Pool<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S> Pool<S> {
    /// A pool; `clean` empties a server that is given back and says whether it can be lent again.
    pub fn new(
        start: impl Fn() -> Result<S, String> + Send + Sync + 'static,
        clean: impl Fn(&S) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Inner { free: Mutex::default(), start: Box::new(start), clean: Box::new(clean) }))
    }

    /// Lends a clean server.
    ///
    /// # Errors
    /// No server is free and none can be started.
    pub fn lend(&self) -> Result<Lent<S>, String> {
        let free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let server = match free {
            Some(server) => server,
            None => (self.0.start)()?,
        };
        Ok(Lent { server: Some(server), pool: self.clone() })
    }
}

impl<S> fmt::Debug for Pool<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

/// A server of a [`Pool`], given back when it is dropped.
pub struct Lent<S> {
    server: Option<S>,
    pool: Pool<S>,
}

impl<S> Deref for Lent<S> {
    type Target = S;

    fn deref(&self) -> &S {
        match &self.server {
            Some(server) => server,
            None => unreachable!("only drop takes it"),
        }
    }
}

impl<S> Drop for Lent<S> {
    fn drop(&mut self) {
        if let Some(server) = self.server.take()
            && (self.pool.0.clean)(&server)
        {
            self.pool.0.free.lock().unwrap_or_else(PoisonError::into_inner).push(server);
        }
    }
}

impl<S> fmt::Debug for Lent<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lent").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn one_at_a_time_and_only_clean_ones() {
        let started = AtomicU32::new(0);
        let pool = Pool::new(move || Ok(started.fetch_add(1, Ordering::SeqCst)), |server| *server != 1);
        let (first, second) = (pool.lend().unwrap(), pool.lend().unwrap());
        assert_eq!((*first, *second), (0, 1));
        drop(second);
        assert_eq!(*pool.lend().unwrap(), 2, "one that cannot be cleaned was lent again");
        drop(first);
        assert!([0, 2].contains(&*pool.lend().unwrap()));
    }
}
