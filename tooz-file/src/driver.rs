//! The driver: connecting, opening sessions, closing.

use std::sync::Arc;

use async_trait::async_trait;
use tooz_core::driver::{Connect, Driver, Groups, Locks, OpenSession, Session};
use tooz_core::{Characteristics, Result};

use crate::client::{Client, FileDriver};
use crate::reaper;
use crate::session::FileSession;

pub(crate) async fn connect(request: Connect) -> Result<FileDriver> {
    let client = Client::open(request)?;
    if !client.config.view {
        let tree = client.tree()?;
        reaper::reap_in_turn(&client, &tree).await?;
    }
    Ok(FileDriver(client))
}

#[async_trait]
impl Driver for FileDriver {
    fn characteristics(&self) -> Characteristics {
        self.0.characteristics
    }

    async fn open_session(&self, request: &OpenSession) -> Result<Arc<dyn Session>> {
        let opened =
            FileSession::open(&self.0, request).await.map_err(|error| error.during("open session"))?;
        Ok(Arc::new(opened))
    }

    fn groups(&self) -> &dyn Groups {
        self
    }

    fn locks(&self) -> &dyn Locks {
        self
    }

    async fn close(&self) -> Result<()> {
        self.0.close()
    }
}

#[cfg(test)]
mod tests {
    //! A child that was forked without exec has all files of its parent open, and with them their locks, which stay
    //! when the parent dies. A fork needs unsafe code. A child that is given the files as its standard streams has
    //! the same open files.

    use std::fs::File;
    use std::io::{BufRead, BufReader, Write};
    use std::path::Path;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use tooz_core::Runtime;
    use tooz_core::driver::Clock;
    use tooz_core::driver::Entropy;
    use tooz_core::driver::Spawner;
    use tooz_core::driver::{
        Acquire, Acquired, AttemptId, Connect, Context, InstanceId, Join, LockKey, LockMode, OpenSession,
        QueueEntry, Session, Turn,
    };
    use tooz_core::{BackendUrl, Capabilities, GroupId, LockName, MemberId, Previous};

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    async fn open(directory: &Path) -> (FileDriver, FileSession) {
        let context = Context::new(Clock::boot(), Entropy::system(), Spawner::new(Runtime::Library).unwrap());
        let url = BackendUrl::parse(&format!("file://{}", directory.display())).unwrap();
        let driver = connect(Connect::new(url, context).unwrap()).await.unwrap();
        let request = OpenSession::new(MemberId::new("m").unwrap(), InstanceId(1));
        let session = FileSession::open(&driver.0, &request).await.unwrap();
        (driver, session)
    }

    fn keys() -> [LockKey; 2] {
        [LockKey::Leader(GroupId::new("g").unwrap()), LockKey::Named(LockName::new("x").unwrap())]
    }

    /// As a fork would make them.
    fn copies_of_files(session: &FileSession) -> Vec<File> {
        let state = session.state.state();
        let held = state.held.values().flat_map(|held| &held.files);
        let files = state.file.iter().chain(held).map(|file| file.try_clone().unwrap());
        files.chain(state.members.values().map(|member| member.file.try_clone().unwrap())).collect()
    }

    fn join() -> Join {
        Join::new(GroupId::new("g").unwrap(), Capabilities::none()).create(true)
    }

    #[test]
    #[allow(clippy::zombie_processes)] // it is to outlive its parent
    #[ignore = "the parent process of the other test"]
    fn parent() {
        let directory = std::env::var("TOOZ_FILE_DIRECTORY").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (_driver, session) = open(Path::new(&directory)).await;
            session.groups().join(&join()).await.unwrap();
            for (attempt, key) in (1..).zip(keys()) {
                let request = Acquire::new(AttemptId(attempt), key, LockMode::Exclusive);
                assert!(matches!(session.locks().request(&request).await.unwrap(), Acquired::Granted(_)));
            }
            let mut files = copies_of_files(&session);
            assert_eq!(files.len(), 3, "of session, lock and member");
            let mut next = || Stdio::from(files.pop().unwrap());
            let child =
                Command::new("sleep").arg("600").stdin(next()).stdout(next()).stderr(next()).spawn().unwrap();
            println!("PARENT OF {}", child.id());
            std::io::stdout().flush().unwrap();
            std::future::pending::<()>().await;
        });
    }

    /// Ends the child, whatever becomes of the test.
    struct Child(Pid);

    impl Drop for Child {
        fn drop(&mut self) {
            // It may be gone already.
            let _ = kill(self.0, Signal::SIGKILL);
        }
    }

    async fn turn(session: &FileSession, entry: &QueueEntry) -> Previous {
        let turn =
            tokio::time::timeout(LONG, session.locks().turn(entry)).await.expect("its turn did not come");
        match turn.unwrap() {
            Turn::Granted(grant) => grant.previous,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn the_dead_are_dead_although_a_child_inherited_their_locks() {
        let directory = tempfile::tempdir().unwrap();
        let mut parent = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "driver::tests::parent", "--nocapture"])
            .env("TOOZ_FILE_DIRECTORY", directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(parent.stdout.take().unwrap()).lines().map_while(Result::ok);
        let pid = lines.into_iter().find_map(|line| line.split_once("PARENT OF ")?.1.trim().parse().ok());
        let child = Child(Pid::from_raw(pid.unwrap()));

        let (driver, session) = open(directory.path()).await;
        assert_eq!(
            session.groups().join(&join()).await.unwrap_err().kind(),
            tooz_core::ErrorKind::MemberExists
        );
        let mut places = Vec::new();
        for (attempt, key) in (1..).zip(keys()) {
            let request = Acquire::new(AttemptId(attempt), key, LockMode::Exclusive);
            match session.locks().request(&request).await.unwrap() {
                Acquired::Queued(place) => places.push(place),
                other => panic!("{other:?}"),
            }
        }
        parent.kill().unwrap();
        parent.wait().unwrap();
        assert_eq!(turn(&session, &places[0]).await, Previous::Expired);
        assert!(driver.0.tree().unwrap().sessions.directory.names().unwrap().len() <= 2);
        session.groups().join(&join()).await.unwrap();
        // Python would have to wait as long as another process has the file's lock, and so must this session.
        let early = tokio::time::timeout(Duration::from_millis(300), session.locks().turn(&places[1])).await;
        assert!(early.is_err(), "granted beside a lock of the operating system");
        drop(child);
        assert_eq!(turn(&session, &places[1]).await, Previous::Expired);
    }
}
