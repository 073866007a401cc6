//! The `cloister` binary: everything is in the library.

fn main() -> std::process::ExitCode {
    cloister::cli::main()
}
