//! Data of another program.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Stores data as fast as the server takes it.
pub(crate) struct Flood {
    to: TcpStream,
    from: BufReader<TcpStream>,
    number: u64,
}

impl Flood {
    pub(crate) fn new(server: SocketAddr) -> Self {
        let to = TcpStream::connect(server).unwrap();
        to.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Self { from: BufReader::new(to.try_clone().unwrap()), to, number: 0 }
    }

    /// Stores so many items of this size; says whether all were.
    pub(crate) fn store(&mut self, count: u64, size: usize) -> bool {
        let mut commands = Vec::new();
        for _ in 0..count {
            self.number += 1;
            commands.extend(format!("set other{} 0 0 {size}\r\n", self.number).into_bytes());
            commands.extend(vec![b'x'; size]);
            commands.extend(b"\r\n");
        }
        self.to.write_all(&commands).unwrap();
        let (mut all, mut line) = (true, String::new());
        for _ in 0..count {
            line.clear();
            self.from.read_line(&mut line).unwrap();
            all &= line == "STORED\r\n";
        }
        all
    }

    /// Stores until nothing of any size is taken any more.
    pub(crate) fn fill(&mut self) {
        // By a factor that is smaller than the one between two classes of sizes.
        let mut size = 300_000.0;
        while size > 1.0 {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            while self.store(1, size as usize) {}
            size /= 1.1;
        }
    }
}
