//! The link that calls use, which the supervisor replaces.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tooz_core::{Error, ErrorKind, Result};

use super::link::{Link, Shared};

pub(crate) struct CurrentLink(watch::Sender<State>);

#[derive(Clone)]
enum State {
    Up(Arc<Link>),
    Down(Error),
    Closed,
}

impl CurrentLink {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(State::Down(Error::from(ErrorKind::Unavailable))))
    }

    /// The link, unless it is being replaced.
    pub(crate) fn get(&self) -> Option<Arc<Link>> {
        match &*self.0.borrow() {
            State::Up(link) => Some(Arc::clone(link)),
            _ => None,
        }
    }

    /// The first link that is newer than `generation`; the caller waits for it for at most `limit`.
    pub(crate) async fn after(&self, generation: u64, limit: Duration, shared: &Shared) -> Result<Arc<Link>> {
        let mut state = self.0.subscribe();
        let waiting = state.wait_for(|state| match state {
            State::Up(link) => link.generation > generation && !link.is_broken(),
            State::Down(_) => false,
            State::Closed => true,
        });
        let found = shared
            .context
            .spawner
            .timeout(limit, waiting)
            .await
            .map(|state| state.map(|state| state.clone()));
        match found {
            Some(Ok(State::Up(link))) => Ok(link),
            None => Err(match &*self.0.borrow() {
                State::Down(why) => why.clone(),
                _ => {
                    Error::new(ErrorKind::Unavailable, format!("no connection to {}", shared.config.topology))
                }
            }),
            _ => Err(Error::new(ErrorKind::Closed, "connect a new coordinator")),
        }
    }

    /// Makes this the link; `false`: the driver was closed meanwhile, and stays closed.
    pub(crate) fn replace(&self, link: Arc<Link>) -> bool {
        self.change(State::Up(link))
    }

    /// There is no link, for this reason.
    pub(crate) fn set_down(&self, why: Error) {
        self.change(State::Down(why));
    }

    fn change(&self, next: State) -> bool {
        self.0.send_if_modified(|state| {
            let open = !matches!(state, State::Closed);
            if open {
                *state = next;
            }
            open
        })
    }

    /// Ends the link, and there is no other.
    pub(crate) fn close(&self) {
        if let State::Up(link) = self.0.send_replace(State::Closed) {
            link.end("the driver was closed");
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        matches!(*self.0.borrow(), State::Closed)
    }
}
