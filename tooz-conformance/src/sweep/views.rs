//! Views: looking that is dropped leaves nothing behind, and the next look sees everything.

use tooz_core::{Capabilities, Error};

use super::point::Point;
use super::scene::{Scene, run};
use crate::tools::{Outcome, ensure};

pub(super) fn scenes() -> Vec<Scene> {
    let looks = [
        ("Viewer::groups", Look::Groups),
        ("Viewer::members", Look::Members),
        ("Viewer::watch", Look::Watch),
        ("Viewer::holders", Look::Holders),
        ("Viewer::leader", Look::Leader),
        ("Viewer::observe", Look::Observe),
    ];
    let mut scenes = vec![
        Scene::new("Builder::view", "alone", run!(connected)),
        Scene::new("Viewer::close", "alone", run!(closed)),
    ];
    scenes.extend(looks.map(|(operation, look)| Scene::new(operation, "one holds", run!(looked, look))));
    scenes
}

#[derive(Clone, Copy, Debug)]
enum Look {
    Groups,
    Members,
    Watch,
    Holders,
    Leader,
    Observe,
}

async fn connected(p: Point) -> Outcome {
    let before = p.world().sessions()?;
    if let Some(connected) = p.sweep(p.h().builder(p.name()).view()).await? {
        connected?.close().await?;
    }
    p.world().sessions_are_again(before).await
}

/// Closing goes on, and can be done again.
async fn closed(p: Point) -> Outcome {
    let viewer = p.h().builder(p.name()).view().await?;
    if let Some(closed) = p.sweep(viewer.close()).await? {
        closed?;
    }
    Ok(viewer.close().await?)
}

async fn looked(p: Point, look: Look) -> Outcome {
    let (group, election) = (p.b().group(p.name())?, p.b().election(p.name())?);
    group.join_or_create(Capabilities::none()).await?;
    let guard = p.b().lock(p.name())?.acquire().await?;
    let led = election.campaign().await?;
    let viewer = p.h().builder("eye").view().await?;
    let seen = p
        .sweep(async {
            let name = p.name();
            Ok::<_, Error>(match look {
                Look::Groups => viewer.groups().await?.contains(group.id()),
                Look::Members => viewer.members(name).await?.len() == 1,
                Look::Watch => viewer.watch(name).await.map(|_| true)?,
                Look::Holders => viewer.holders(name).await?.holders.len() == 1,
                Look::Leader => viewer.leader(name).await?.is_some(),
                Look::Observe => viewer.observe(name).await.map(|_| true)?,
            })
        })
        .await?;
    ensure(seen.transpose()? != Some(false), "it saw something else")?;
    ensure(viewer.members(p.name()).await?.len() == 1, "the next look fails")?;
    ensure(guard.is_held() && led.is_held(), "looking at it lost it")?;
    viewer.close().await?;
    guard.release().await?;
    led.resign().await?;
    group.leave().await?;
    group.delete().await?;
    p.world().nothing_stands()
}
