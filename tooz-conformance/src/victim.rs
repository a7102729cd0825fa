//! A participant that does what it is told and then dies without a word, in the way that the target allows.

use tooz_core::{Characteristics, Coordinator};

use crate::harness::Harness;
use crate::helper::{Held, obey};
use crate::process::Process;
use crate::tools::Outcome;

/// A holder, waiter, leader or member that is going to die: a process where the driver reaches processes, otherwise
/// a coordinator whose session the kit ends.
#[derive(Debug)]
pub enum Victim {
    /// A process, which is killed.
    Process(Process),
    /// A coordinator: cut off where sessions have a ttl, otherwise ended by the backend.
    Here(Here),
}

/// A [`Victim`] in this process.
#[derive(Debug)]
pub struct Here {
    harness: Harness,
    coordinator: Coordinator,
    held: Held,
}

impl Harness {
    /// A victim, which is going to die without a word.
    ///
    /// # Errors
    /// It cannot be started: the case lacks its `.deaths()`.
    pub async fn victim(&self, member: &str) -> Outcome<Victim> {
        if self.claimed().contains(Characteristics::DISTRIBUTED_ACROSS_PROCESSES) {
            return Ok(Victim::Process(self.process(member).await?));
        }
        self.kit()?;
        // The dead do not come back.
        let coordinator = self.keep(self.builder(member).rejoin(false)).await?;
        Ok(Victim::Here(Here { harness: self.clone(), coordinator, held: Held::default() }))
    }
}

impl Victim {
    /// Tells it to do something and waits for the answer.
    ///
    /// # Errors
    /// The command failed, or there is no answer.
    pub async fn ask(&mut self, command: &str) -> Outcome<String> {
        match self {
            Self::Process(process) => process.ask(command).await,
            Self::Here(here) => {
                let words: Vec<&str> = command.split(' ').collect();
                obey(&here.coordinator, &mut here.held, &words).await
            }
        }
    }

    /// The token or term with which an answer begins.
    ///
    /// # Errors
    /// As [`Victim::ask`]; it begins with none.
    pub async fn ask_token(&mut self, command: &str) -> Outcome<u64> {
        Ok(self.ask(command).await?.split(' ').next().unwrap_or_default().parse()?)
    }

    /// It is gone, at the latest a ttl and the grain from now ([`Harness::gone`]).
    ///
    /// # Errors
    /// It cannot be killed.
    pub fn die(&mut self) -> Outcome {
        match self {
            Self::Process(process) => process.kill(),
            Self::Here(here) => {
                let (h, member) = (&here.harness, here.coordinator.member().to_string());
                match h.ttl() {
                    Some(_) => h.kit()?.cut(h.namespace(), &member),
                    None => h.kit()?.expire(h.namespace(), &member),
                }
                Ok(())
            }
        }
    }
}
