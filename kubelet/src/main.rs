//! The `kubelet` binary: reads the command line, sets up the process, runs the agent until a signal ends it.

use kubelet::config::{self, Command, Loaded};
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    kubelet::sys::one_heap();
    match config::load(std::env::args().skip(1)) {
        Ok(Command::Print(text)) => {
            // A closed pipe is the reader's choice.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Ok(Command::Run(loaded)) => run(&loaded),
        Err(errors) => {
            for error in errors {
                eprintln!("error: {error}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(loaded: &Loaded) -> ExitCode {
    kubelet::process::grow_file_table();
    kubelet::process::init_logging(loaded);
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    // Two threads serve a node: the work is waiting for the runtime, and each further thread costs memory.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .thread_keep_alive(std::time::Duration::from_secs(2))
        .thread_name("kubelet")
        .enable_all()
        .build();
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(kubelet::process::run(loaded)),
        Err(error) => Err(anyhow::Error::new(error).context("cannot start the async runtime")),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
