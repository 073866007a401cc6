//! The user's terminal while `watch` has it; what it was before is restored however that ends.

use std::io::{self, IsTerminal, Stdout, Write};
use std::sync::Once;

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::event::{DisableBracketedPaste, EnableBracketedPaste};
use ratatui::crossterm::style::force_color_output;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::crossterm::{event, execute};
use ratatui::layout::Rect;
use rustix::process::{Signal, getpid, kill_process};
use rustix::termios::{QueueSelector, tcflush};
use tokio::sync::mpsc::UnboundedSender;

use super::model::{Event, Key};
use super::view::Theme;

/// The other screen of a raw terminal.
pub(super) struct Screen(Terminal<CrosstermBackend<Stdout>>);

/// Tells whether there is a terminal to draw on and to read keys from.
pub(super) fn is_terminal() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

impl Screen {
    pub(super) fn enter(theme: Theme) -> io::Result<Self> {
        restore_on_panic();
        // Otherwise `NO_COLOR` would win over `--color always`.
        force_color_output(theme.is_colored);
        let terminal = Terminal::new(CrosstermBackend::new(io::stdout()))?;
        let screen = Self(terminal);
        take()?;
        Ok(screen)
    }

    pub(super) fn area(&self) -> io::Result<Rect> {
        Ok(Rect::from(self.0.size()?))
    }

    pub(super) fn terminal(&mut self) -> &mut Terminal<CrosstermBackend<Stdout>> {
        &mut self.0
    }

    pub(super) fn ring() -> io::Result<()> {
        let mut output = io::stdout().lock();
        output.write_all(b"\x07")?;
        output.flush()
    }

    /// Stops this process with the terminal given back, and comes back when it goes on.
    pub(super) fn pause(&mut self) -> io::Result<()> {
        restore();
        // The rest of this function runs when somebody continues this process.
        kill_process(getpid(), Signal::STOP)?;
        self.take_back()
    }

    /// Takes the terminal again, after others had it.
    pub(super) fn take_back(&mut self) -> io::Result<()> {
        take()?;
        // `clear` would ask the terminal where the cursor is, and the thread that reads keys would get the answer.
        let area = self.area()?;
        self.0.resize(area)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

fn take() -> io::Result<()> {
    enable_raw_mode()?;
    execute!(io::stdout(), EnterAlternateScreen, EnableBracketedPaste, Hide)?;
    // What was typed before was typed for somebody else.
    Ok(tcflush(io::stdin(), QueueSelector::IFlush)?)
}

/// A terminal that has gone needs no restoring.
fn restore() {
    let _ = execute!(io::stdout(), DisableBracketedPaste, LeaveAlternateScreen, Show);
    let _ = disable_raw_mode();
}

/// What a panic says must be read on the screen that stays.
fn restore_on_panic() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |information| {
            restore();
            before(information);
        }));
    });
}

/// Reads keys until the terminal has gone; the process that ends takes this thread along.
pub(super) fn read_keys(events: &UnboundedSender<Event>) {
    while let Ok(event) = event::read() {
        if let Some(event) = understood(event)
            && events.send(event).is_err()
        {
            return;
        }
    }
}

fn understood(event: event::Event) -> Option<Event> {
    match event {
        event::Event::Key(key) if key.kind == event::KeyEventKind::Press => Some(Event::Key(pressed(key))),
        event::Event::Paste(text) => Some(Event::Paste(text)),
        event::Event::Resize(..) => Some(Event::Resized),
        // A key that is held repeats no answer.
        event::Event::Key(_)
        | event::Event::FocusGained
        | event::Event::FocusLost
        | event::Event::Mouse(_) => None,
    }
}

fn pressed(key: event::KeyEvent) -> Key {
    use event::{KeyCode, KeyModifiers};
    let is_plain = (key.modifiers - KeyModifiers::SHIFT).is_empty();
    match key.code {
        KeyCode::Char('c') if key.modifiers == KeyModifiers::CONTROL => Key::Interrupt,
        KeyCode::Char('z') if key.modifiers == KeyModifiers::CONTROL => Key::Suspend,
        KeyCode::Char(character) if is_plain => Key::Char(character),
        KeyCode::Up if is_plain => Key::Up,
        KeyCode::Down if is_plain => Key::Down,
        KeyCode::Home if is_plain => Key::First,
        KeyCode::End if is_plain => Key::Last,
        KeyCode::Enter if is_plain => Key::Enter,
        KeyCode::Esc if is_plain => Key::Escape,
        KeyCode::Backspace if is_plain => Key::Backspace,
        _ => Key::Other,
    }
}
