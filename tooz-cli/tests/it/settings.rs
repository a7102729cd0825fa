//! Which backend a verb uses, and which a `tooz` below it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::common::{Finished, TestBackend};

/// A directory without any setting, and `tooz` there.
struct Scene(TestBackend);

impl Scene {
    fn new() -> Self {
        let scene = Self(TestBackend::new());
        fs::create_dir_all(scene.0.path("config/tooz")).unwrap();
        scene
    }

    fn tooz(&self, arguments: &[&str]) -> Command {
        let mut command = self.0.tooz(arguments);
        command
            .env_remove("TOOZ_URL")
            .env("TOOZ", env!("CARGO_BIN_EXE_tooz"))
            .env("XDG_STATE_HOME", self.0.path("state"))
            .env("XDG_CONFIG_HOME", self.0.path("config"));
        command
    }

    fn sqlite(&self, name: &str) -> String {
        format!("sqlite://{}", self.0.path(name).display())
    }

    /// Writes a file with the mode 600.
    fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        path.display().to_string()
    }

    fn configure(&self, text: &str) -> String {
        self.write("config/tooz/config.toml", text)
    }
}

fn finish(command: &mut Command) -> Finished {
    let output = command.output().unwrap();
    Finished {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// From a `cd` elsewhere: who holds `x` by a `tooz` below, and what that is told.
const BELOW: &str = "cd /; $TOOZ holders x | cut -d' ' -f1,2; \
                     echo \"url <$TOOZ_URL> file <$TOOZ_URL_FILE> namespace <$TOOZ_NAMESPACE> ttl <$TOOZ_TTL>\"";
const HOLDER: &str = "\"me\" exclusive\n";

#[test]
fn the_first_source_that_names_a_url_wins_and_is_handed_on() {
    let scene = Scene::new();
    let verb = ["--member", "me", "lock", "x", "--", "sh", "-c", BELOW];
    let told = |url: &str, file: &str| format!("{HOLDER}url <{url}> file <{file}> namespace <> ttl <>\n");
    let by_default = finish(&mut scene.tooz(&verb));
    assert_eq!(by_default.stdout, told(&scene.sqlite("state/tooz/tooz.db"), ""), "{by_default:?}");

    scene.configure(&format!("url = \"{}\" # the one of all\n", scene.sqlite("config.db")));
    let by_config = finish(&mut scene.tooz(&verb));
    let config = scene.0.path("config/tooz/config.toml").display().to_string();
    assert_eq!(by_config.stdout, told("", &config), "{by_config:?}");
    assert!(scene.0.path("config.db").exists());

    let file = scene.write("url", &format!("{}\n", scene.sqlite("file.db")));
    // From the directory where it is, as in a shell.
    let by_file = finish(scene.tooz(&verb).env("TOOZ_URL_FILE", "url"));
    assert_eq!(by_file.stdout, told("", &file), "{by_file:?}");
    assert!(scene.0.path("file.db").exists());

    let url = scene.sqlite("variable.db");
    let by_variable =
        finish(scene.tooz(&verb).env("TOOZ_URL", format!("{url} \r\n")).env("TOOZ_URL_FILE", ""));
    assert_eq!(by_variable.stdout, told(&url, ""), "{by_variable:?}");
    let both = finish(scene.tooz(&verb).env("TOOZ_URL", &url).env("TOOZ_URL_FILE", &file));
    assert_eq!((both.code, both.stdout.as_str()), (Some(64), ""), "{both:?}");
    assert!(both.stderr.contains("both set"), "{both:?}");

    let option = [&["--url", "sqlite://./option.db"], &verb[..]].concat();
    let by_option = finish(scene.tooz(&option).env("TOOZ_URL", &url).env("TOOZ_URL_FILE", &file));
    assert_eq!(by_option.stdout, told(&scene.sqlite("./option.db"), ""), "{by_option:?}");
    let with_line_end = format!("{url}\n");
    let unstripped = finish(&mut scene.tooz(&[&["--url", &with_line_end], &verb[..]].concat()));
    assert_eq!((unstripped.code, unstripped.stdout.as_str()), (Some(64), ""), "{unstripped:?}");
}

#[test]
fn namespace_and_ttl_come_with_the_url_unless_they_are_given() {
    let scene = Scene::new();
    let url = scene.sqlite("config.db");
    scene.configure(&format!("url = \"{url}\"\nnamespace = \"file\"\nttl = \"20s\"\n"));
    let verb = ["--member", "me", "lock", "x", "--", "sh", "-c", BELOW];
    let told = |option: &[&str], variables: &[(&str, &str)]| {
        let command = [option, &verb[..]].concat();
        let finished = finish(scene.tooz(&command).envs(variables.iter().copied()));
        assert_eq!(finished.code, Some(0), "{finished:?}");
        let rest = finished.stdout.strip_prefix(HOLDER).unwrap_or_else(|| panic!("{finished:?}"));
        rest.split_once(" namespace ").unwrap().1.to_owned()
    };
    let variables = [("TOOZ_NAMESPACE", "variable"), ("TOOZ_TTL", "30s")];
    // The holder is seen, so the tooz below has them from the file. They must not get to another backend that it names.
    assert_eq!(told(&[], &[]), "<> ttl <>\n");
    let other = scene.sqlite("other.db");
    let nested = format!("$TOOZ --url {other} lock y -- $TOOZ --url {other} --namespace file holders y");
    let elsewhere = finish(&mut scene.tooz(&["lock", "x", "--", "sh", "-c", &nested]));
    assert_eq!((elsewhere.code, elsewhere.stdout.as_str()), (Some(0), ""), "{elsewhere:?}");
    assert_eq!(finish(&mut scene.tooz(&["--namespace", "", "groups"])).code, Some(64));
    assert_eq!(told(&[], &variables), "<variable> ttl <30000ms>\n");
    assert_eq!(told(&["--namespace", "option", "--ttl", "40s"], &variables), "<option> ttl <40000ms>\n");
    assert_eq!(told(&["--url", &url], &[]), "<> ttl <>\n", "another source's namespace is not meant");
    let wrong = finish(scene.tooz(&verb).env("TOOZ_TTL", "soon"));
    assert_eq!(wrong.code, Some(64), "{wrong:?}");
    assert!(wrong.stderr.contains("TOOZ_TTL") && wrong.stderr.contains("15s"), "{wrong:?}");
}

#[test]
fn a_file_that_cannot_be_meant_so_is_refused_and_shows_no_secret() {
    let scene = Scene::new();
    let verb = ["lock", "x", "--", "true"];
    let refused = |what: &str, finished: Finished| {
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(64), ""), "{what}: {finished:?}");
        assert!(
            finished.stderr.contains(what) && !finished.stderr.contains("s3cret"),
            "{what}: {finished:?}"
        );
    };
    for (text, what) in [
        ("url = \"redis://:s3cret@h\"\nuri = \"x\"\n", "has an unknown key"),
        ("ttl = \"20s\"\nurl = redis://:s3cret@h\n", "line 2 is not valid TOML"),
        ("url = [\"redis://:s3cret@h\"]\n", "url must be a string"),
        ("namespace = \"a\"\n", "names no url"),
        ("url = \"redis://:s3cret@h\"\nttl = \"soon\"\n", "ttl: write a duration"),
        (&"#".repeat(70_000), "longer than"),
    ] {
        scene.configure(text);
        refused(what, finish(&mut scene.tooz(&verb)));
    }
    let config = scene.configure(&format!("url = \"{}\"\n", scene.sqlite("config.db")));
    fs::set_permissions(&config, Permissions::from_mode(0o620)).unwrap();
    refused("chmod go-w", finish(&mut scene.tooz(&verb)));
    scene.configure("");
    let empty = finish(&mut scene.tooz(&verb));
    assert_eq!(empty.code, Some(0), "an empty file says nothing: {empty:?}");

    let pipe = scene.0.path("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let empty = scene.write("empty", "\n");
    let two = scene.write("two", "redis://:s3cret@h\n\n");
    for (file, what) in [
        ("absent", "no such file"),
        ("absent.toml", "no such file"),
        (pipe.to_str().unwrap(), "not a regular file"),
        (&empty, "it is empty"),
        (&two, "invisible U+000A"),
    ] {
        refused(what, finish(scene.tooz(&verb).env("TOOZ_URL_FILE", file)));
    }
}

#[test]
fn a_password_that_everyone_can_read_is_warned_of() {
    let scene = Scene::new();
    let free = tooz_servers::free_port().unwrap();
    for (user, mode, warns) in [
        (":s3cret@", 0o600, false),
        (":s3cret@", 0o640, false),
        (":s3cret@", 0o644, true),
        ("sentinel", 0o644, true),
        ("", 0o644, false),
    ] {
        let url = match user {
            "sentinel" => format!("redis+sentinel://127.0.0.1:{free}/m?sentinel_password=s3cret"),
            user => format!("redis://{user}127.0.0.1:{free}"),
        };
        let file = scene.write("url", &url);
        let config = scene.configure(&format!("url = \"{url}\""));
        for path in [&file, &config] {
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
        for variable in [&*file, ""] {
            let finished = finish(scene.tooz(&["groups"]).env("TOOZ_URL_FILE", variable));
            assert_eq!(finished.code, Some(69), "{finished:?}");
            assert_eq!(finished.stderr.contains("mode 640"), warns, "{mode:o} {finished:?}");
            assert!(!finished.stderr.contains("s3cret"), "{finished:?}");
        }
    }
}

/// From wherever a command starts.
#[test]
fn a_relative_path_in_a_file_is_meant_from_the_directory_of_the_file() {
    let scene = Scene::new();
    let file = scene.write("url", "sqlite://./of-the-file.db");
    scene.configure("url = \"sqlite://../of-the-config.db\"\n");
    let script = "cd /; $TOOZ holders x | wc -l";
    for (variable, database) in [(&*file, "of-the-file.db"), ("", "config/of-the-config.db")] {
        let mut command = scene.tooz(&["lock", "x", "--", "sh", "-c", script]);
        let finished = finish(command.env("TOOZ_URL_FILE", variable).current_dir("/tmp"));
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(0), "1\n"), "{finished:?}");
        assert!(scene.0.path(database).exists(), "{database}");
    }
}

#[test]
fn a_wrong_url_is_refused_with_what_named_it() {
    let scene = Scene::new();
    let wrong = finish(scene.tooz(&["groups"]).env("TOOZ_URL", "nonsense"));
    assert_eq!(wrong.code, Some(64), "{wrong:?}");
    assert!(wrong.stderr.contains("from TOOZ_URL)"), "{wrong:?}");
}
