//! Calls made to see whether they are refused, each in a child process of its own: whatever one does to memory,
//! descriptors or name spaces ends with that child.

#![allow(unsafe_code, reason = "system calls that no safe crate offers")]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It returned this.
    Value(i64),
    /// It failed with this error number.
    Errno(i32),
    /// The process was killed by this signal.
    Killed(i32),
}

/// Makes a system call in a child process.
pub fn call(number: i64, arguments: [u64; 6]) -> io::Result<Answer> {
    let [first, second, third, fourth, fifth, sixth] = arguments;
    in_child(|| {
        // SAFETY: `in_child` runs this in a process that shares no memory with this one and does nothing afterwards
        // but report the result and end; what the call does to its memory is read by nobody.
        let value = unsafe { libc::syscall(number, first, second, third, fourth, fifth, sixth) };
        // SAFETY: the address of the error number is valid for the life of the thread.
        if value == -1 { -i64::from(unsafe { *libc::__errno_location() }) } else { value.max(0) }
    })
}

/// Makes the 32-bit call `getpid` by its own gate; `None` on processors that have none.
pub fn foreign_call() -> io::Result<Option<Answer>> {
    #[cfg(target_arch = "x86_64")]
    return in_child(|| {
        const GETPID: i64 = 20;
        let result: i64;
        // SAFETY: the call reads no memory and changes none; the registers that older kernels clear are named.
        unsafe {
            core::arch::asm!(
                "int 0x80",
                inlateout("rax") GETPID => result,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
        result
    })
    .map(Some);
    #[cfg(not(target_arch = "x86_64"))]
    Ok(None)
}

/// Gives the loopback interface the flags that it has, which takes the right to administer the network.
pub fn raise_loopback() -> io::Result<Answer> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
    let mut name = [0; libc::IFNAMSIZ];
    name[0] = libc::c_char::try_from(b'l').unwrap_or_default();
    name[1] = libc::c_char::try_from(b'o').unwrap_or_default();
    let mut request =
        libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: 0 } };
    in_child(|| {
        let failed = || -i64::from(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO));
        // SAFETY: both requests read and write the structure, which lives until the end of this function.
        unsafe {
            if libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request) == -1 {
                return failed();
            }
            if libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request) == -1 {
                return failed();
            }
        }
        0
    })
}

/// Traces a child step by step as a debugger does; gives the number of steps.
pub fn trace_own_child() -> io::Result<u32> {
    const CODE: i32 = 7;
    const STEPS: u32 = 5;
    // SAFETY: the child calls only what may be called between fork and exec, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: as above; the request takes no memory.
        unsafe {
            let traced = libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
            libc::raise(libc::SIGSTOP);
            libc::_exit(if traced == 0 { CODE } else { 1 });
        }
    }
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut status = wait(child)?;
    let mut steps = 0;
    while libc::WIFSTOPPED(status) && steps < STEPS {
        request(libc::PTRACE_SINGLESTEP, child)?;
        status = wait(child)?;
        steps += 1;
    }
    if libc::WIFSTOPPED(status) {
        request(libc::PTRACE_CONT, child)?;
        status = wait(child)?;
    }
    let is_as_expected = libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == CODE;
    if is_as_expected {
        Ok(steps)
    } else {
        Err(io::Error::other(format!("the child ended with {status:#x}")))
    }
}

#[cfg(target_env = "musl")]
type PtraceRequest = libc::c_int;
#[cfg(not(target_env = "musl"))]
type PtraceRequest = libc::c_uint;

fn request(request: PtraceRequest, child: libc::pid_t) -> io::Result<()> {
    // SAFETY: the requests that this module makes take no memory.
    let result = unsafe { libc::ptrace(request, child, 0, 0) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets every process of the same user trace this one, where a security module asks for that.
pub fn allow_tracers() {
    // SAFETY: the option takes numbers only. Where it is unknown, nothing has to be allowed.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY, 0, 0, 0) };
}

/// Child processes that do nothing; they end with the value, or with this process.
#[derive(Debug, Default)]
pub struct Crowd(Vec<libc::pid_t>);

impl Crowd {
    /// Starts children until there are `ceiling` of them, or until one can't be started; gives that error.
    pub fn grow(&mut self, ceiling: usize) -> Option<io::Error> {
        while self.0.len() < ceiling {
            // SAFETY: the child calls only what may be called between fork and exec, and never returns.
            let child = unsafe { libc::fork() };
            match child {
                // SAFETY: as above.
                0 => unsafe {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
                    loop {
                        libc::pause();
                    }
                },
                -1 => return Some(io::Error::last_os_error()),
                started => self.0.push(started),
            }
        }
        None
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Tells whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in &self.0 {
            // SAFETY: the number belongs to a child that was not waited for yet.
            unsafe { libc::kill(*child, libc::SIGKILL) };
        }
        for child in &self.0 {
            // It was killed, and can only end.
            let _ = wait(*child);
        }
    }
}

/// Runs `body` in a child that shares nothing with this process and tells what it returned: a value, or an error
/// number below zero. `body` may do what a signal handler may do: no allocation, no lock.
fn in_child(body: impl FnOnce() -> i64) -> io::Result<Answer> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    // SAFETY: the child calls only what may be called between fork and exec, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: a session of its own keeps the call from the terminal of this process.
        unsafe { libc::setsid() };
        let result = body().to_ne_bytes();
        // SAFETY: the buffer is valid and as long as is said.
        unsafe {
            libc::write(write.as_raw_fd(), result.as_ptr().cast(), result.len());
            libc::_exit(0);
        }
    }
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    drop(write);
    let told = tell(read);
    let status = wait(child)?;
    match told {
        Some(value) if value >= 0 => Ok(Answer::Value(value)),
        Some(errno) => Ok(Answer::Errno(i32::try_from(-errno).unwrap_or(i32::MAX))),
        None if libc::WIFSIGNALED(status) => Ok(Answer::Killed(libc::WTERMSIG(status))),
        None => Err(io::Error::other("the child said nothing")),
    }
}

fn tell(read: OwnedFd) -> Option<i64> {
    let mut result = [0; 8];
    File::from(read).read_exact(&mut result).ok()?;
    Some(i64::from_ne_bytes(result))
}

fn wait(child: libc::pid_t) -> io::Result<i32> {
    let mut status = 0;
    loop {
        // SAFETY: the status is written to a variable of this function.
        if unsafe { libc::waitpid(child, &raw mut status, 0) } == child {
            return Ok(status);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_tells_its_value_or_its_error() {
        assert!(matches!(call(libc::SYS_getppid, [0; 6]).unwrap(), Answer::Value(1..)));
        assert_eq!(call(libc::SYS_close, [u64::MAX, 0, 0, 0, 0, 0]).unwrap(), Answer::Errno(libc::EBADF));
    }

    #[test]
    fn a_call_that_kills_kills_the_child_alone() {
        let own = u64::try_from(libc::SIGKILL).unwrap();
        // The whole group of the child, which leads its own.
        assert_eq!(call(libc::SYS_kill, [0, own, 0, 0, 0, 0]).unwrap(), Answer::Killed(libc::SIGKILL));
    }

    #[test]
    fn a_child_can_be_traced_and_a_crowd_ends() {
        assert_eq!(trace_own_child().unwrap(), 5);
        let mut crowd = Crowd::default();
        assert!(crowd.grow(3).is_none());
        assert_eq!(crowd.len(), 3);
    }
}
