//! What stands on a screen after a program has drawn on it: as much of a terminal as the live list uses.

/// The text on a screen.
#[derive(Debug, Default)]
pub(super) struct Picture {
    lines: Vec<Vec<char>>,
    row: usize,
    column: usize,
}

impl Picture {
    /// Follows what a program wrote.
    pub(super) fn of(written: &str) -> Self {
        let mut picture = Self::default();
        let mut rest = written;
        while let Some(character) = rest.chars().next() {
            rest = &rest[character.len_utf8()..];
            match character {
                '\u{1b}' => {
                    let Some(body) = rest.strip_prefix('[') else { continue };
                    let Some(end) = body.find(|end: char| ('@'..='~').contains(&end)) else { break };
                    picture.obey(&body[..end], &body[end..=end]);
                    rest = &body[end + 1..];
                }
                '\r' => picture.column = 0,
                '\n' => picture.row += 1,
                _ if character.is_control() => {}
                _ => picture.put(character),
            }
        }
        picture
    }

    fn obey(&mut self, parameters: &str, command: &str) {
        match command {
            "H" => {
                let mut numbers = parameters.split(';').map(|number| number.parse().unwrap_or(1_usize));
                self.row = numbers.next().unwrap_or(1) - 1;
                self.column = numbers.next().unwrap_or(1) - 1;
            }
            "J" => self.lines.clear(),
            "h" | "l" if parameters == "?1049" => self.lines.clear(),
            _ => {}
        }
    }

    fn put(&mut self, character: char) {
        if self.lines.len() <= self.row {
            self.lines.resize(self.row + 1, Vec::new());
        }
        let line = &mut self.lines[self.row];
        if line.len() <= self.column {
            line.resize(self.column + 1, ' ');
        }
        line[self.column] = character;
        self.column += 1;
    }

    pub(super) fn contains(&self, text: &str) -> bool {
        self.lines.iter().any(|line| line.iter().collect::<String>().contains(text))
    }
}
