//! A TCP proxy that misbehaves when told to.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot, watch};

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

/// What is wrong at the moment.
#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    delay: Duration,
    /// Bytes wait, as they do while a network drops packets that are sent again later.
    held: [bool; 2],
    refuse: bool,
    /// A connection of an earlier generation ends.
    generation: u64,
}

impl Faults {
    fn holds(&self, way: Way) -> bool {
        self.held[way as usize]
    }
}

/// Looks at the bytes of one read.
type Look = dyn Fn(&[u8]) -> bool + Send + Sync;

/// Makes other bytes of those of one read.
type Make = dyn Fn(&[u8]) -> Vec<u8> + Send + Sync;

/// Makes other bytes of those of one read, if it has something to say about them.
type Edit = dyn Fn(&[u8]) -> Option<Vec<u8>> + Send + Sync;

/// Says which bytes are requests and answers.
type Counts = dyn Fn(Way, &[u8]) -> bool + Send + Sync;

/// Which reply to lose, and how often.
struct Losing {
    request: Box<Look>,
    end: End,
    times: u64,
}

/// How a request goes wrong.
#[derive(Clone)]
enum End {
    /// It does not arrive, and the connection ends.
    Lost,
    /// It arrives, and the connection ends with the reply that satisfies this.
    Unanswered(Arc<Look>),
    /// It does not arrive, and this is the answer.
    Answered(Arc<[u8]>),
    /// It does not arrive, and this is said at once, whatever else is due.
    TurnedAway(Arc<[u8]>),
    /// This arrives instead of it.
    Replaced(Arc<Make>),
}

struct Shared {
    target: SocketAddr,
    faults: watch::Sender<Faults>,
    losing: Mutex<Vec<Losing>>,
    counts: OnceLock<Box<Counts>>,
    edit: OnceLock<Box<Edit>>,
    round_trips: AtomicU64,
    connections: AtomicU64,
}

/// Listens on a loopback port of its own and passes everything on to a server. Its methods work at once and from any
/// thread; it has a thread of its own. Dropping it ends every connection.
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    /// Dropped with the proxy, which ends its thread.
    _stop: oneshot::Sender<()>,
}

impl Proxy {
    /// A proxy before the server at `target`.
    ///
    /// # Errors
    /// No port or thread can be had.
    pub fn start(target: SocketAddr) -> Result<Self, String> {
        let explain = |error: std::io::Error| format!("no proxy: {error}");
        let bind =
            || std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, super::free_port()?)).map_err(explain);
        // Where many are started at a time, a port that was free a moment ago may be taken.
        let listener = (0..10).find_map(|_| bind().ok()).map_or_else(bind, Ok)?;
        listener.set_nonblocking(true).map_err(explain)?;
        let address = listener.local_addr().map_err(explain)?;
        let shared = Arc::new(Shared {
            target,
            faults: watch::Sender::new(Faults::default()),
            losing: Mutex::default(),
            counts: OnceLock::new(),
            edit: OnceLock::new(),
            round_trips: AtomicU64::new(0),
            connections: AtomicU64::new(0),
        });
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(explain)?;
        let here = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("proxy".into())
            .spawn(move || {
                runtime.block_on(async {
                    let Ok(listener) = TcpListener::from_std(listener) else { return };
                    tokio::select! {
                        biased; // the end of the proxy is final
                        _ = stopped => {}
                        () = listen(&here, &listener) => {}
                    }
                });
                runtime.shutdown_background();
            })
            .map_err(explain)?;
        Ok(Self { shared, address, _stop: stop })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn set(&self, change: impl FnOnce(&mut Faults)) {
        self.shared.faults.send_modify(change);
    }

    /// Everything takes this much longer in each direction.
    pub fn delay(&self, by: Duration) {
        self.set(|faults| faults.delay = by);
    }

    /// Nothing gets through in one direction until [`heal`](Proxy::heal), and no end of a connection either: a black hole.
    /// What was sent meanwhile arrives then, as TCP would send it again.
    pub fn hold(&self, way: Way) {
        self.set(|faults| faults.held[way as usize] = true);
    }

    /// Both directions at once.
    pub fn hold_both(&self) {
        self.set(|faults| faults.held = [true; 2]);
    }

    /// Ends every connection there is; new ones are welcome.
    pub fn cut(&self) {
        self.set(|faults| faults.generation += 1);
    }

    /// Ends every connection, and each new one at once.
    pub fn refuse(&self) {
        self.set(|faults| {
            faults.refuse = true;
            faults.generation += 1;
        });
    }

    /// Everything works again. What [`hold`](Proxy::hold) held back goes on its way.
    pub fn heal(&self) {
        self.shared.losing().clear();
        self.set(|faults| *faults = Faults { generation: faults.generation, ..Faults::default() });
    }

    /// Heals, but what was held back is lost together with its connections: the network was gone for longer than TCP
    /// tries.
    pub fn heal_with_loss(&self) {
        self.cut();
        self.heal();
    }

    /// The next `times` requests whose bytes satisfy `request` reach the server, and their connection ends instead of
    /// the first bytes back which satisfy `reply`. Nothing that comes before those is passed on either.
    pub fn lose_replies(
        &self,
        times: u64,
        request: impl Fn(&[u8]) -> bool + Send + Sync + 'static,
        reply: impl Fn(&[u8]) -> bool + Send + Sync + 'static,
    ) {
        self.lose(times, Box::new(request), End::Unanswered(Arc::new(reply)));
    }

    /// The next `times` requests whose bytes satisfy `request` do not reach the server: their connection ends instead.
    pub fn lose_requests(&self, times: u64, request: impl Fn(&[u8]) -> bool + Send + Sync + 'static) {
        self.lose(times, Box::new(request), End::Lost);
    }

    /// The next `times` requests whose bytes satisfy `request` do not reach the server, and `answer` comes back. Only for
    /// protocols that answer in order, and for clients that wait for it: an answer to an earlier request that is still
    /// due is let through first.
    pub fn answer_requests(
        &self,
        times: u64,
        request: impl Fn(&[u8]) -> bool + Send + Sync + 'static,
        answer: impl Into<Arc<[u8]>>,
    ) {
        self.lose(times, Box::new(request), End::Answered(answer.into()));
    }

    /// The same for protocols with many requests at a time: the answer does not wait for anything.
    pub fn turn_away_requests(
        &self,
        times: u64,
        request: impl Fn(&[u8]) -> bool + Send + Sync + 'static,
        answer: impl Into<Arc<[u8]>>,
    ) {
        self.lose(times, Box::new(request), End::TurnedAway(answer.into()));
    }

    /// The next `times` requests whose bytes satisfy `request` do not reach the server: what `by` makes of their bytes does.
    /// For protocols that answer in order, also while other requests are under way: the server itself answers, in its turn.
    pub fn replace_requests(
        &self,
        times: u64,
        request: impl Fn(&[u8]) -> bool + Send + Sync + 'static,
        by: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static,
    ) {
        self.lose(times, Box::new(request), End::Replaced(Arc::new(by)));
    }

    /// Only bytes that satisfy this count as asking and as answering: some protocols chatter.
    pub fn count_only(&self, counts: impl Fn(Way, &[u8]) -> bool + Send + Sync + 'static) {
        // It is set once, before the first connection.
        let _ = self.shared.counts.set(Box::new(counts));
    }

    /// What `by` makes of the bytes of the server comes down instead of them; `None`: they do themselves.
    pub fn edit_replies(&self, by: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + Sync + 'static) {
        // It is set once, before the first connection.
        let _ = self.shared.edit.set(Box::new(by));
    }

    fn lose(&self, times: u64, request: Box<Look>, end: End) {
        self.shared.losing().push(Losing { request, end, times });
    }

    /// How often a client, on one connection, sent something after it had got something or for the first time. While one
    /// thing is done at a time that is the number of round trips.
    pub fn round_trips(&self) -> u64 {
        self.shared.round_trips.load(Ordering::SeqCst)
    }

    /// How many connections were opened so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("address", &self.address)
            .field("target", &self.shared.target)
            .field("faults", &*self.shared.faults.borrow())
            .finish_non_exhaustive()
    }
}

async fn listen(shared: &Arc<Shared>, listener: &TcpListener) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                shared.connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(Arc::clone(shared), client));
            }
            // No descriptor is free; one will be.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn serve(shared: Arc<Shared>, client: TcpStream) {
    let mut faults = shared.faults.subscribe();
    let generation = faults.borrow().generation;
    if faults.borrow().refuse {
        return;
    }
    let ended = async {
        // An error means that the proxy is gone.
        let _ = faults.wait_for(|faults| faults.generation != generation).await;
    };
    tokio::select! {
        biased; // a cut ends the connection before another byte passes
        () = ended => {}
        () = both_ways(&shared, client) => {}
    }
}

async fn both_ways(shared: &Shared, client: TcpStream) {
    let Ok(server) = TcpStream::connect(shared.target).await else { return };
    // A proxy that gathered small writes would be slower than any network.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let connection = Connection::default();
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let pumps = async {
        tokio::join!(
            pump(shared, &connection, Way::Up, from_client, to_server),
            pump(shared, &connection, Way::Down, from_server, to_client),
        )
    };
    tokio::select! {
        biased; // an end that was decided on comes before another byte
        () = connection.ended.notified() => {}
        _ = pumps => {}
    }
}

#[derive(Default)]
struct Connection {
    /// The reply that is to be lost.
    losing: Mutex<Option<Arc<Look>>>,
    /// The last bytes went up.
    asked: AtomicBool,
    /// How often bytes came down.
    replies: watch::Sender<u64>,
    /// Answers that the server does not give.
    made_up: Mutex<Vec<Arc<[u8]>>>,
    answer: Notify,
    ended: Notify,
}

impl Connection {
    /// Puts an answer where the server's would have come, after what was asked before.
    async fn make_up(&self, answer: Arc<[u8]>, due: bool) {
        if due {
            let mut replies = self.replies.subscribe();
            // An error means that the connection is gone.
            let _ = replies.changed().await;
        }
        self.made_up.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
        self.answer.notify_one();
    }

    /// The next bytes from the server, or made up ones.
    async fn next(&self, way: Way, from: &mut OwnedReadHalf, buffer: &mut [u8]) -> usize {
        loop {
            tokio::select! {
                biased; // what the server says was asked before
                read = from.read(buffer) => return read.unwrap_or(0),
                () = self.answer.notified(), if way == Way::Down => {}
            }
            let made_up =
                std::mem::take(&mut *self.made_up.lock().unwrap_or_else(PoisonError::into_inner)).concat();
            let length = made_up.len().min(buffer.len());
            buffer[..length].copy_from_slice(&made_up[..length]);
            if length > 0 {
                return length;
            }
        }
    }
}

async fn pump(
    shared: &Shared,
    connection: &Connection,
    way: Way,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
) {
    let mut faults = shared.faults.subscribe();
    let mut buffer = vec![0; 65_536];
    loop {
        let read = connection.next(way, &mut from, &mut buffer).await;
        // Looked at after the read: what arrives during a black hole is held, the end of the connection, too.
        if faults.wait_for(|faults| !faults.holds(way)).await.is_err() {
            return;
        }
        let delay = faults.borrow().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if read == 0 {
            // A half-closed connection stays half open.
            let _ = to.shutdown().await;
            return;
        }
        match shared.verdict(connection, way, &buffer[..read]) {
            Verdict::Pass => {
                if to.write_all(&buffer[..read]).await.is_err() {
                    return;
                }
            }
            Verdict::Replace(other) => {
                if to.write_all(&other).await.is_err() {
                    return;
                }
            }
            Verdict::Swallow => {}
            Verdict::Answer { answer, due } => connection.make_up(answer, due).await,
            Verdict::End => {
                connection.ended.notify_one();
                return;
            }
        }
    }
}

enum Verdict {
    Pass,
    Replace(Vec<u8>),
    Swallow,
    Answer { answer: Arc<[u8]>, due: bool },
    End,
}

impl Shared {
    fn verdict(&self, connection: &Connection, way: Way, bytes: &[u8]) -> Verdict {
        let mut losing = connection.losing.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = self.counts.get().is_none_or(|counts| counts(way, bytes));
        if way == Way::Down {
            if counts {
                connection.asked.store(false, Ordering::SeqCst);
            }
            connection.replies.send_modify(|replies| *replies += 1);
            return match &*losing {
                Some(reply) if reply(bytes) => Verdict::End,
                Some(_) => Verdict::Swallow,
                None => {
                    let edited = self.edit.get().and_then(|edit| edit(bytes));
                    edited.map_or(Verdict::Pass, Verdict::Replace)
                }
            };
        }
        let due = counts && connection.asked.swap(true, Ordering::SeqCst);
        if counts && !due {
            self.round_trips.fetch_add(1, Ordering::SeqCst);
        }
        let mut wishes = self.losing();
        let Some(at) = wishes.iter().position(|wish| (wish.request)(bytes)) else { return Verdict::Pass };
        let end = wishes[at].end.clone();
        wishes[at].times -= 1;
        if wishes[at].times == 0 {
            wishes.remove(at);
        }
        match end {
            End::Unanswered(reply) => {
                *losing = Some(reply);
                Verdict::Pass
            }
            End::Answered(answer) => Verdict::Answer { answer, due },
            End::TurnedAway(answer) => Verdict::Answer { answer, due: false },
            End::Replaced(by) => Verdict::Replace(by(bytes)),
            End::Lost => Verdict::End,
        }
    }

    fn losing(&self) -> MutexGuard<'_, Vec<Losing>> {
        self.losing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::TcpStream;

    use super::*;

    /// A server that answers each read with its bytes.
    fn echo() -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                std::thread::spawn(move || {
                    let (mut from, mut to) = (&stream, &stream);
                    std::io::copy(&mut from, &mut to)
                });
            }
        });
        address
    }

    fn connect(proxy: &Proxy) -> TcpStream {
        let stream = TcpStream::connect(proxy.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    fn ask(stream: &mut TcpStream, word: &[u8]) -> std::io::Result<Vec<u8>> {
        stream.write_all(word)?;
        let mut answer = vec![0; word.len()];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    }

    fn is_over(result: std::io::Result<Vec<u8>>) -> bool {
        result.is_err_and(|error| error.kind() != ErrorKind::WouldBlock)
    }

    #[test]
    fn it_answers_instead_of_the_server() {
        let proxy = Proxy::start(echo()).unwrap();
        let mut stream = connect(&proxy);
        proxy.answer_requests(1, |bytes| bytes == b"two", *b"no!");
        assert_eq!(ask(&mut stream, b"one").unwrap(), b"one");
        assert_eq!(ask(&mut stream, b"two").unwrap(), b"no!");
        assert_eq!(ask(&mut stream, b"two").unwrap(), b"two");
    }

    #[test]
    fn it_turns_away_at_once_and_counts_what_counts() {
        let proxy = Proxy::start(echo()).unwrap();
        proxy.count_only(|_, bytes| bytes == b"yes");
        let mut stream = connect(&proxy);
        for word in [b"yes", b"noo", b"yes"] {
            assert_eq!(ask(&mut stream, word).unwrap(), word);
        }
        assert_eq!(proxy.round_trips(), 2);
        proxy.turn_away_requests(1, |bytes| bytes == b"two", *b"no!");
        assert_eq!(ask(&mut stream, b"two").unwrap(), b"no!");
    }

    #[test]
    fn it_replaces_what_was_asked_for() {
        let proxy = Proxy::start(echo()).unwrap();
        let mut stream = connect(&proxy);
        proxy.replace_requests(1, |bytes| bytes.starts_with(b"two"), <[u8]>::to_ascii_uppercase);
        assert_eq!(ask(&mut stream, b"one").unwrap(), b"one");
        assert_eq!(ask(&mut stream, b"two words").unwrap(), b"TWO WORDS");
        assert_eq!(ask(&mut stream, b"two words").unwrap(), b"two words");
    }

    #[test]
    fn it_edits_what_the_server_says() {
        let proxy = Proxy::start(echo()).unwrap();
        proxy.edit_replies(|bytes| (bytes == b"two").then(|| b"2nd".to_vec()));
        let mut stream = connect(&proxy);
        assert_eq!(ask(&mut stream, b"one").unwrap(), b"one");
        assert_eq!(ask(&mut stream, b"two").unwrap(), b"2nd");
    }

    #[test]
    fn it_passes_everything_on_and_counts() {
        let proxy = Proxy::start(echo()).unwrap();
        let mut stream = connect(&proxy);
        for _ in 0..3 {
            assert_eq!(ask(&mut stream, b"hello").unwrap(), b"hello");
        }
        assert_eq!((proxy.round_trips(), proxy.connections()), (3, 1));
    }

    #[test]
    fn what_is_held_arrives_after_healing() {
        let proxy = Proxy::start(echo()).unwrap();
        for way in [Way::Up, Way::Down] {
            let mut stream = connect(&proxy);
            ask(&mut stream, b"first").unwrap();
            proxy.hold(way);
            stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            assert_eq!(ask(&mut stream, b"held").unwrap_err().kind(), ErrorKind::WouldBlock);
            proxy.heal();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let mut answer = [0; 4];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"held");
        }
    }

    #[test]
    fn a_cut_ends_connections_and_a_refusal_new_ones() {
        let proxy = Proxy::start(echo()).unwrap();
        let mut stream = connect(&proxy);
        ask(&mut stream, b"first").unwrap();
        proxy.cut();
        assert!(is_over(ask(&mut stream, b"second").and_then(|_| ask(&mut stream, b"third"))));
        assert!(ask(&mut connect(&proxy), b"again").is_ok());
        proxy.refuse();
        let mut stream = connect(&proxy);
        assert!(is_over(ask(&mut stream, b"refused").and_then(|_| ask(&mut stream, b"refused"))));
        proxy.heal();
        assert!(ask(&mut connect(&proxy), b"again").is_ok());
    }

    #[test]
    fn a_reply_is_lost_once_and_its_request_was_done() {
        let proxy = Proxy::start(echo()).unwrap();
        let mut stream = connect(&proxy);
        let mut other = connect(&proxy);
        proxy.lose_replies(1, |bytes| bytes == b"lost", |bytes| bytes == b"lost");
        assert!(ask(&mut stream, b"kept").is_ok());
        assert!(is_over(ask(&mut stream, b"lost")));
        assert!(ask(&mut other, b"lost").is_ok(), "another connection suffered, or it was lost twice");
    }

    #[test]
    fn a_request_is_lost_with_its_connection() {
        let proxy = Proxy::start(echo()).unwrap();
        proxy.lose_requests(1, |bytes| bytes == b"lost");
        assert!(is_over(ask(&mut connect(&proxy), b"lost")));
        assert!(ask(&mut connect(&proxy), b"lost").is_ok());
    }
}
