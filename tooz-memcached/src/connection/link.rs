//! One connection, which carries the batches of all callers: they are written as they come, and answered in order.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, oneshot};
use tooz_core::Result;
use tooz_core::driver::{Context, Task};

use super::command::{Answer, Answers, Batch};
use super::greeting::Greeting;
use crate::config::Config;

/// One connection.
pub(crate) struct Link {
    /// Grows with every link of a driver. A cas number counts on the link alone over which it was read: a server that was
    /// started again gives the same numbers to other items.
    pub(crate) number: u64,
    pub(crate) greeting: Greeting,
    requests: mpsc::UnboundedSender<Exchange>,
    end: Arc<End>,
    _task: Task<()>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("number", &self.number).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct End {
    ended: AtomicBool,
    retired: AtomicBool,
    asked: Notify,
}

/// Marks a link as ended when its task is over, however that comes.
struct EndOnDrop(Arc<End>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Release);
    }
}

struct Exchange {
    bytes: Vec<u8>,
    commands: usize,
    reply: oneshot::Sender<Vec<Answer>>,
}

impl Link {
    /// Connects. Must run on the coordinator's runtime, on which the connection's task lives.
    pub(crate) async fn connect(config: &Config, context: &Context, number: u64) -> Result<Self> {
        let (stream, greeting) = Greeting::exchange(config, context).await?;
        let (sender, requests) = mpsc::unbounded_channel();
        let end = Arc::new(End::default());
        let mut connection = Connection { stream, requests, due: VecDeque::new(), unsent: Vec::new() };
        let told = Arc::clone(&end);
        let task = context.spawner.spawn(async move {
            let told = EndOnDrop(told);
            let why = tokio::select! {
                biased; // what was ended carries nothing more
                () = told.0.asked.notified() => None,
                result = connection.run() => result.err(),
            };
            tracing::debug!(why = why.map(|error| error.to_string()), "a connection to memcached ended");
        });
        Ok(Self { number, greeting, requests: sender, end, _task: task })
    }

    /// Sends a batch and waits for its answers; `None`: the link ended first. Dropping it takes nothing back.
    pub(crate) async fn exchange(&self, batch: &Batch) -> Option<Answers> {
        if self.is_ended() {
            return None;
        }
        let (reply, answers) = oneshot::channel();
        let exchange = Exchange { bytes: batch.bytes().to_vec(), commands: batch.commands(), reply };
        self.requests.send(exchange).ok()?;
        answers.await.ok().map(Answers::new)
    }

    fn is_ended(&self) -> bool {
        self.end.ended.load(Ordering::Acquire)
    }

    /// Whether it is to be used for what comes.
    pub(crate) fn is_current(&self) -> bool {
        !self.is_ended() && !self.end.retired.load(Ordering::Acquire)
    }

    /// Whether what comes takes another link. What is unanswered waits on.
    pub(crate) fn set_retired(&self, retired: bool) {
        self.end.retired.store(retired, Ordering::Release);
    }

    /// Ends it: what is unanswered stays so.
    pub(crate) fn end(&self) {
        self.end.ended.store(true, Ordering::Release);
        self.end.asked.notify_one();
    }
}

/// What the link's task has.
struct Connection {
    stream: TcpStream,
    requests: mpsc::UnboundedReceiver<Exchange>,
    /// Batches that wait for answers, with those that have come.
    due: VecDeque<(usize, Vec<Answer>, oneshot::Sender<Vec<Answer>>)>,
    unsent: Vec<u8>,
}

impl Connection {
    async fn run(&mut self) -> Result<(), io::Error> {
        let mut unread = Vec::new();
        loop {
            self.write()?;
            let interest = if self.unsent.is_empty() {
                Interest::READABLE
            } else {
                Interest::READABLE | Interest::WRITABLE
            };
            tokio::select! {
                biased; // answers first: they make room
                ready = self.stream.ready(interest) => {
                    ready?;
                    self.read(&mut unread)?;
                }
                exchange = self.requests.recv() => {
                    let Some(exchange) = exchange else { return Ok(()) };
                    self.queue(exchange);
                    while let Ok(exchange) = self.requests.try_recv() {
                        self.queue(exchange);
                    }
                }
            }
        }
    }

    fn queue(&mut self, exchange: Exchange) {
        self.unsent.extend_from_slice(&exchange.bytes);
        self.due.push_back((exchange.commands, Vec::with_capacity(exchange.commands), exchange.reply));
    }

    /// Writes as much as the connection takes.
    fn write(&mut self) -> io::Result<()> {
        let mut written = 0;
        while written < self.unsent.len() {
            match self.stream.try_write(&self.unsent[written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(some) => written += some,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        self.unsent.drain(..written);
        Ok(())
    }

    /// Reads what is there, and hands out the answers.
    fn read(&mut self, unread: &mut Vec<u8>) -> io::Result<()> {
        loop {
            unread.reserve(16_384);
            match self.stream.try_read_buf(unread) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        let mut read = 0;
        while let Some((answer, length)) = Answer::parse(&unread[read..]).map_err(io::Error::other)? {
            read += length;
            let unasked = || io::Error::other("the server gave an answer that nothing asked for");
            let (commands, answers, _) = self.due.front_mut().ok_or_else(unasked)?;
            answers.push(answer);
            if answers.len() == *commands
                && let Some((_, answers, reply)) = self.due.pop_front()
            {
                // A caller that is gone does not wait for it.
                let _ = reply.send(answers);
            }
        }
        unread.drain(..read);
        Ok(())
    }
}
